"""Would more pictures help? Scores from two halves of a recording's pictures, and how well they agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ..recording.data import Recording
from .attributor import Attributor
from .methods.averages import more_passes
from .scores import Scores
from .trust import correlation


@dataclass(frozen=True)
class Halves:
    """``agreement``: Pearson's r over the components between scores from one half of the pictures and from the other.

    ``reliability``: what that predicts for scores from all of them against scores from as many other pictures, and
    ``with_twice_the_pictures`` for twice as many, both by Spearman and Brown's formula. It counts all that differs
    between the halves: pictures, their noise, and the ablations where the seeds of the estimator differ.
    """

    pictures: int
    agreement: float
    reliability: float
    with_twice_the_pictures: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def split_half(
    make: Callable[[int], Attributor], recording: Recording, *, progress: bool = True
) -> tuple[Halves, Scores]:
    """How reliable scores from these pictures are, and the scores themselves: the mean of the halves'.

    ``make(half)`` gives the attributor of half 0 or 1, so that they can have seeds of their own. Pictures take turns
    between the halves. The cost is that of one run over all the pictures. Raises ValueError for fewer than 2 pictures.
    """
    n = recording.n_rows
    if n < 2:
        raise ValueError(f"the recording has {n} picture, two halves need at least 2")
    runs = [
        make(half).run(recording.select(rows=list(range(half, n, 2))), progress=progress, concept=recording.prompts[0])
        for half in (0, 1)
    ]
    one, other = runs
    one.require_same_space([other])
    agreement = float(correlation(one.values.double(), other.values.double()))
    share = (n + 1) // 2 / n
    whole = {
        "prompts": recording.prompts,
        "seeds": recording.seeds,
        "intact_j": share * one.provenance["intact_j"] + (1 - share) * other.provenance["intact_j"],
        "cost": _total(one.provenance["cost"], other.provenance["cost"]),
    }
    provenance = {**one.provenance, **whole}
    halves = Halves(n, agreement, more_passes(agreement, 2), more_passes(agreement, 4))
    provenance["halves"] = halves.to_dict()
    return halves, Scores(share * one.values + (1 - share) * other.values, one.space, provenance)


def _total(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    same = {"recorded_denoiser_calls": one["recorded_denoiser_calls"], "rows_per_pass": one["rows_per_pass"]}
    return {name: same.get(name, round(value + other[name], 2)) for name, value in one.items()}
