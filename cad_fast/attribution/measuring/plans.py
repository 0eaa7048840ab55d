"""Which rows of which recordings, and how many ablations, go through the denoiser together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...components.ablation import Ablation
from ...objectives import Objective
from ...recording.call import OUTPUT_NAMES
from ...recording.data import Recording

# How many rows a forward pass takes where no gradient is asked for, unless told otherwise.
ROWS_PER_PASS = 64
# How many ablations a pass has at least where they share its beginning, which costs one more.
SHARING_VARIANTS = 16
# Per pass: the numbers of calls in the recording, each with the rows taken from it.
Pass = list[tuple[int, list[int]]]


def plan_passes(recording: Recording, objective: Objective, rows_per_pass: int) -> list[Pass]:
    """Divide every row of every call in the objective's window, once, into passes of at most ``rows_per_pass`` rows.

    Raises:
        ValueError: The recording lacks what the objective needs, or none of its timesteps is in the window.
    """
    if rows_per_pass < 1:
        raise ValueError(f"rows_per_pass is {rows_per_pass}, expected at least 1")
    objective.check(recording)
    places = [
        (number, row)
        for number, call in enumerate(recording.calls)
        if objective.active(call)
        for row in range(call.rows)
    ]
    passes = []
    for start in range(0, len(places), rows_per_pass):
        rows_of: dict[int, list[int]] = {}
        for number, row in places[start : start + rows_per_pass]:
            rows_of.setdefault(number, []).append(row)
        passes.append(list(rows_of.items()))
    return passes


@dataclass(frozen=True)
class GradientPlan:
    """Which rows of one recording, and how many ablations, go through the denoiser together for gradients.

    Args:
        passes: The rows of each pass.
        variants: How many ablations a pass runs its rows under.
        n_rows: How many rows there are in all passes.
    """

    passes: list[Pass]
    variants: int
    n_rows: int

    @classmethod
    def of(cls, recording: Recording, objective: Objective, rows_per_pass: int) -> GradientPlan:
        """Take as many of the recording's rows as fit, and as many ablations of them as fit then."""
        passes = plan_passes(recording, objective, rows_per_pass)
        counts = [sum(len(numbers) for _, numbers in pieces) for pieces in passes]
        return cls(passes, max(1, rows_per_pass // max(counts)), sum(counts))

    def groups(self, ablations: Sequence[Ablation]) -> list[tuple[int, Sequence[Ablation]]]:
        """Return the ablations in groups that run together, each with the number of its first."""
        return [(at, ablations[at : at + self.variants]) for at in range(0, len(ablations), self.variants)]

    def cost(self, ablations: int) -> int:
        """Return how many passes of the denoiser so many ablations take."""
        return len(self.passes) * -(-ablations // self.variants)


# Of one pass: (number of the recording, of its call, the rows taken from it).
Piece = tuple[int, int, list[int]]


@dataclass(frozen=True)
class Target:
    """What is measured for one concept: an objective on a recording."""

    objective: Objective
    recording: Recording


@dataclass(frozen=True)
class MeasuringPlan:
    """Which rows of which recordings, and how many ablations, go through the denoiser together to measure J.

    Args:
        recordings: Those of the targets, each once.
        passes: The rows of each pass.
        variants: How many ablations a pass runs its rows under.
        n_rows: Per target, over how many rows its J is the mean.
    """

    recordings: list[Recording]
    passes: list[list[Piece]]
    variants: int
    n_rows: list[int]

    @property
    def rows(self) -> int:
        """Rows through the denoiser per ablation. A row that several targets look at counts once."""
        return sum(len(numbers) for pieces in self.passes for _, _, numbers in pieces)

    @classmethod
    def of(cls, targets: Sequence[Target], rows_per_pass: int, *, share: bool = False) -> MeasuringPlan:
        """Take every row that some target's objective looks at, once, however many targets look at it.

        Rows share a pass when their calls hold the same outputs for samples of the same shape.

        Args:
            targets: What is measured.
            rows_per_pass: How many rows go through the denoiser at once, at most.
            share: Whether to have ``SHARING_VARIANTS`` ablations in a pass, where so many rows fit.

        Raises:
            ValueError: A recording lacks what its objective needs, or none of its timesteps is in the window.
        """
        if rows_per_pass < 1:
            raise ValueError(f"rows_per_pass is {rows_per_pass}, expected at least 1")
        for target in targets:
            target.objective.check(target.recording)
        recordings = list({id(target.recording): target.recording for target in targets}.values())
        n_rows = [sum(c.rows for c in t.recording.calls if t.objective.active(c)) for t in targets]
        kinds: dict[Any, list[tuple[int, int, int]]] = {}
        for number, recording in enumerate(recordings):
            mine = [target.objective for target in targets if target.recording is recording]
            for place, call in enumerate(recording.calls):
                active = [objective for objective in mine if objective.active(call)]
                if active:
                    held = tuple(getattr(call, name) is not None for name in OUTPUT_NAMES)
                    kind = (held, call.sample.shape[1:], any(objective.both_branches for objective in active))
                    kinds.setdefault(kind, []).extend((number, place, row) for row in range(call.rows))
        passes = []
        together = max(1, rows_per_pass // SHARING_VARIANTS) if share else rows_per_pass
        for places in kinds.values():
            for start in range(0, len(places), together):
                passes.append(_pieces(places[start : start + together]))
        most = max(sum(len(numbers) for _, _, numbers in pieces) for pieces in passes)
        return cls(recordings, passes, max(1, rows_per_pass // most), n_rows)

    def groups(self, ablations: int) -> list[tuple[int, int]]:
        """Return the ablations that run together, as (number of the first, how many)."""
        return [(at, min(self.variants, ablations - at)) for at in range(0, ablations, self.variants)]

    def cost(self, ablations: int) -> int:
        """Return how many passes of the denoiser so many ablations take."""
        return len(self.passes) * -(-ablations // self.variants)


def _pieces(places: list[tuple[int, int, int]]) -> list[Piece]:
    rows_of: dict[tuple[int, int], list[int]] = {}
    for number, call, row in places:
        rows_of.setdefault((number, call), []).append(row)
    return [(number, call, numbers) for (number, call), numbers in rows_of.items()]
