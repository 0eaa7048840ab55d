"""J under many ablations, for one concept or many: every pass of the denoiser serves all that can use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..ablation import Ablation
from ..choices import EXECUTORS, Executor
from ..components import ComponentSpace
from ..denoiser_calls import OUTPUT_NAMES, DenoiserCall
from ..objectives import Objective
from ..recording_data import Recording
from ..row_engine import RowEngine, rows
from .gradient import only_gradients_of
from .passes import merge_calls, repeated, unconditional_call
from .store import RunState

# Of one pass: (number of the recording, of its call, the rows taken from it).
Piece = tuple[int, int, list[int]]
# Computes groups of ablations, given as (number of the first, how many), in any order: (first, J [concepts, k]).
Compute = Callable[[list[tuple[int, int]]], Iterator[tuple[int, Tensor]]]


@dataclass(frozen=True)
class Target:
    """What is measured for one concept, on which recording."""

    objective: Objective
    recording: Recording


@dataclass(frozen=True)
class MeasurePlan:
    """Which rows of which recordings, and how many ablations, go through the denoiser together."""

    recordings: list[Recording]
    passes: list[list[Piece]]
    variants: int
    n_rows: list[int]  # per target: over how many rows its J is the mean

    @property
    def rows(self) -> int:
        """Rows through the denoiser per ablation, those that several targets look at once."""
        return sum(len(numbers) for pieces in self.passes for _, _, numbers in pieces)

    @classmethod
    def of(cls, targets: Sequence[Target], rows_per_pass: int) -> MeasurePlan:
        """Every row that some target's objective looks at, once, whatever the number of its targets.

        Rows share a pass when their calls hold the same outputs for samples of the same shape.
        Raises ValueError when a recording lacks what its objective needs or a window holds no timestep.
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
        for places in kinds.values():
            for start in range(0, len(places), rows_per_pass):
                passes.append(_pieces(places[start : start + rows_per_pass]))
        most = max(sum(len(numbers) for _, _, numbers in pieces) for pieces in passes)
        return cls(recordings, passes, max(1, rows_per_pass // most), n_rows)

    def groups(self, ablations: int) -> list[tuple[int, int]]:
        """Ablations that run together: (number of the first, how many)."""
        return [(at, min(self.variants, ablations - at)) for at in range(0, ablations, self.variants)]

    def cost(self, ablations: int) -> int:
        """How many passes of the denoiser so many ablations take."""
        return len(self.passes) * -(-ablations // self.variants)


def _pieces(places: list[tuple[int, int, int]]) -> list[Piece]:
    rows_of: dict[tuple[int, int], list[int]] = {}
    for number, call, row in places:
        rows_of.setdefault((number, call), []).append(row)
    return [(number, call, numbers) for (number, call), numbers in rows_of.items()]


class Measurer:
    """Measures groups of ablations on one denoiser; a context, inside which the denoiser is in eval mode.

    Plain data but for what is entered, so that it can be sent to another process.
    """

    def __init__(
        self, denoiser: nn.Module, targets: Sequence[Target], space: ComponentSpace, rows_per_pass: int
    ) -> None:
        self.denoiser, self.targets, self.space = denoiser, list(targets), space
        self.plan = MeasurePlan.of(targets, rows_per_pass)
        self._engine: RowEngine | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Measurer:
        self._stack = ExitStack()
        self._stack.enter_context(torch.no_grad())
        self._stack.enter_context(only_gradients_of(self.denoiser, []))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._engine is not None:
            self._engine.__exit__(kind, error, trace)
            self._engine = None
        self._stack.close()

    def measure(self, group: Sequence[Ablation]) -> Tensor:
        """J float64 [targets, len(group)] under each ablation."""
        self._engine = _switch(self._engine, self.denoiser, group, self.space)
        sums = torch.zeros(len(self.targets), len(group), dtype=torch.float64)
        for pieces in self.plan.passes:
            self._add_pass(pieces, len(group), sums)
        return sums / torch.tensor(self.plan.n_rows)[:, None]

    def _add_pass(self, pieces: list[Piece], variants: int, sums: Tensor) -> None:
        parts = [self.plan.recordings[number].calls[place].select_rows(numbers) for number, place, numbers in pieces]
        call = repeated(merge_calls(parts), variants)
        output = call.run(self.denoiser)
        live: DenoiserCall | None = None  # with the unconditional output of this pass, for objectives of both branches
        for number, target in enumerate(self.targets):
            own = self._rows_of(target, pieces)
            if not own:
                continue
            used = call
            if target.objective.both_branches:
                live = live or self._with_unconditional(call, parts, variants)
                used = live
            values = _on_rows(target.objective, output, used, own, variants)
            sums[number] += values.double().view(variants, -1).sum(1).cpu()

    def _rows_of(self, target: Target, pieces: list[Piece]) -> list[int]:
        """Which rows of a pass the target looks at."""
        own, at = [], 0
        for number, place, numbers in pieces:
            recording = self.plan.recordings[number]
            if recording is target.recording and target.objective.active(recording.calls[place]):
                own += range(at, at + len(numbers))
            at += len(numbers)
        return own

    def _with_unconditional(self, call: DenoiserCall, parts: list[DenoiserCall], variants: int) -> DenoiserCall:
        other = repeated(merge_calls([unconditional_call(part) for part in parts]), variants)
        return replace(call, unconditional_output=other.run(self.denoiser))


def _on_rows(objective: Objective, output: Tensor, call: DenoiserCall, own: list[int], variants: int) -> Tensor:
    """J of some of the rows of each variant."""
    each = call.rows // variants
    if len(own) == each:
        return objective(output, call)
    places = [variant * each + row for variant in range(variants) for row in own]
    return objective(output[places], call.select_rows(places))


def _switch(
    engine: RowEngine | None, denoiser: nn.Module, group: Sequence[Ablation], space: ComponentSpace
) -> RowEngine:
    """An entered engine for the group: the same one where it has as many variants."""
    if engine is not None:
        if engine.variants == len(group):
            engine.set(group)
            return engine
        engine.__exit__(None, None, None)
    return rows(denoiser, group, space).__enter__()


def measure_all(
    measurer: Measurer,
    ablations: Sequence[Ablation],
    *,
    state: RunState | None = None,
    until: Callable[[Tensor], bool] | None = None,
    progress: bool = True,
    executor: Executor = "local",
    workers: int | None = None,
) -> Tensor:
    """J float64 [targets, len(ablations)]: the mean over the rows and active timesteps, under each ablation.

    What ``state`` has is not measured again. ``until`` is shown J [targets, k] of the first k ablations, group by
    group in their order, and ends the run by True, with those. ``executor``: "local", or "ray" with so many
    ``workers`` (extra ``ray``), which measures the same groups and so gives the same numbers.
    """
    if executor not in EXECUTORS:
        raise ValueError(f"executor is {executor!r}, expected 'local' or 'ray'")
    state = state or RunState(None, {}, resume=False)
    groups = measurer.plan.groups(len(ablations))
    found = torch.full((len(measurer.targets), len(ablations)), torch.nan, dtype=torch.float64)
    missing = []
    for first, count in groups:
        known = [state.measured.get(number) for number in range(first, first + count)]
        if all(known):
            found[:, first : first + count] = torch.tensor(known, dtype=torch.float64).T
        else:
            missing.append((first, count))
    compute = _local(measurer, ablations)
    if executor == "ray":
        from .ray_executor import on_ray

        compute = on_ray(measurer, ablations, workers)
    done = len(ablations) - sum(count for _, count in missing)
    bar = tqdm(total=len(ablations), initial=done, desc="ablations", unit="ablation", disable=not progress)
    looked = 0  # ablations, in their order, that `until` has seen

    def enough() -> bool:
        nonlocal looked
        while looked < len(ablations) and not bool(found[0, looked].isnan()):
            looked = min(looked + measurer.plan.variants, len(ablations))
            if until is not None and until(found[:, :looked]):
                return True
        return False

    with bar:
        if not enough():
            for first, values in compute(missing):
                state.add(first, values)
                found[:, first : first + values.shape[1]] = values
                bar.update(values.shape[1])
                if enough():
                    break
    return found[:, :looked]


def _local(measurer: Measurer, ablations: Sequence[Ablation]) -> Compute:
    def compute(groups: list[tuple[int, int]]) -> Iterator[tuple[int, Tensor]]:
        with measurer:
            for first, count in groups:
                yield first, measurer.measure(ablations[first : first + count])

    return compute
