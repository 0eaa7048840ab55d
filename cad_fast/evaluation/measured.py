"""Numbers of pictures, before and after: their means, how they changed, and how far pictures are from others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from .intervals import Interval, mean_interval
from .scorers import Distance


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


@dataclass(frozen=True)
class MeanChange:
    """One quantity of the same seeds before and after, with 95% intervals of the means."""

    before: tuple[float, ...]
    after: tuple[float, ...]

    @property
    def difference(self) -> float:
        """The mean after minus that before."""
        return mean(self.after) - mean(self.before)

    @property
    def difference_interval(self) -> Interval | None:
        """Student's interval of the paired differences; None where all are equal."""
        return mean_interval([b - a for a, b in zip(self.before, self.after, strict=True)])

    def to_dict(self) -> dict[str, Any]:
        """Means and intervals as pairs, None where all pictures have the same number."""
        return {
            "n": len(self.before),
            "before": mean(self.before),
            "before_interval": as_list(mean_interval(self.before)),
            "after": mean(self.after),
            "after_interval": as_list(mean_interval(self.after)),
            "difference": self.difference,
            "difference_interval": as_list(self.difference_interval),
        }


@dataclass(frozen=True)
class Far:
    """How far pictures are from others: the mean over ``n`` pairs with its interval, or of two sets without one."""

    by: str
    value: float
    interval: Interval | None
    n: int

    def to_dict(self) -> dict[str, Any]:
        return {"by": self.by, "value": self.value, "interval": as_list(self.interval), "n": self.n}


def as_list(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)


def far(distances: Sequence[Distance], before: Sequence[Image.Image], after: Sequence[Image.Image]) -> dict[str, Far]:
    """What ``distances`` say of two lists of pictures, by quantity.

    Raises ValueError naming the distance that gave another shape, NaN or infinity, or a quantity that another gave.
    """
    found: dict[str, Far] = {}
    for distance in distances:
        for quantity, raw in distance.distances(before, after).items():
            values = raw.detach().double().cpu()
            if quantity in found:
                raise ValueError(f"{distance.name} and another distance give {quantity!r}: it can be given once only")
            if values.shape not in ((), (len(before),)):
                expected = f"expected [] or [{len(before)}]"
                raise ValueError(f"{distance.name} gave shape {list(values.shape)} for {quantity!r}, {expected}")
            if not values.isfinite().all():
                raise ValueError(f"{distance.name} gave a {quantity!r} that is not finite")
            if values.ndim == 0:
                found[quantity] = Far(distance.name, float(values), None, len(after))
            else:
                numbers = values.tolist()
                found[quantity] = Far(distance.name, mean(numbers), mean_interval(numbers), len(after))
    return found


def by_quantity(measured: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """The numbers of several pictures, by quantity."""
    return {quantity: [each[quantity] for each in measured] for quantity in (measured[0] if measured else ())}
