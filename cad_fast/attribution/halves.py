"""Would more pictures help? Scores from two halves of a recording's pictures, and how well they agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ..recording.data import Recording
from .attributor import Attributor
from .gradients.averages import more_passes
from .scores import Scores
from .trust import correlation


@dataclass(frozen=True)
class Halves:
    """How well scores from two halves of the pictures agree.

    The halves differ in the pictures, their noise, and the ablations where the seeds of the estimator differ.

    Args:
        pictures: How many there are in all.
        agreement: Pearson's r over the components between scores from one half and from the other.
        reliability: The r it predicts for scores from all pictures against scores from as many others (Spearman and
            Brown's formula).
        with_twice_the_pictures: The same for twice as many.
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
    """Score two halves of the pictures apart, and compare. The cost is that of one run over all the pictures.

    Args:
        make: Returns the attributor of half 0 or 1, so that they can have seeds of their own.
        recording: The pictures. They take turns between the halves.
        progress: Whether to show progress bars.

    Returns:
        How well the halves agree, and the mean of their scores.

    Raises:
        ValueError: There are fewer than 2 pictures.
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
    of_all = {
        "prompts": recording.prompts,
        "seeds": recording.seeds,
        "intact_j": share * one.provenance["intact_j"] + (1 - share) * other.provenance["intact_j"],
        "cost": _total(one.provenance["cost"], other.provenance["cost"]),
    }
    provenance = {**one.provenance, **of_all}
    halves = Halves(n, agreement, more_passes(agreement, 2), more_passes(agreement, 4))
    provenance["halves"] = halves.to_dict()
    return halves, Scores(share * one.values + (1 - share) * other.values, one.space, provenance)


def _total(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    same = {"recorded_denoiser_calls": one["recorded_denoiser_calls"], "rows_per_pass": one["rows_per_pass"]}
    return {name: same.get(name, round(value + other[name], 2)) for name, value in one.items()}
