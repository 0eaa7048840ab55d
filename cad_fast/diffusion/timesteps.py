"""Windows of timesteps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor


@dataclass(frozen=True)
class TimestepWindow:
    """A range of timesteps, both ends included, in the units that the denoiser is given.

    ::

        early = TimestepWindow(1000, 850)
        early == TimestepWindow.of((850, 1000))
        early.contains(900.0)

    Args:
        highest: Where generation enters the window, 1000 or 1 at its start for most models.
        lowest: Where it leaves the window.

    Raises:
        TypeError: An end is no number.
        ValueError: An end is NaN or infinite, or the window is empty.
    """

    highest: float
    lowest: float

    def __post_init__(self) -> None:
        for name in ("highest", "lowest"):
            object.__setattr__(self, name, _timestep(name, getattr(self, name)))
        if self.lowest > self.highest:
            raise ValueError(
                f"the window from {self.highest:g} down to {self.lowest:g} is empty, expected the highest first"
            )

    @classmethod
    def of(cls, window: Window | None) -> TimestepWindow | None:
        """Return a window from one, or from two timesteps in either order. None stays None.

        Raises:
            TypeError: It is something else.
            ValueError: It has not two entries, or one of them is NaN or infinite.
        """
        if window is None or isinstance(window, TimestepWindow):
            return window
        if not isinstance(window, (list, tuple)):
            raise TypeError(f"the window of timesteps is {window!r}, expected two timesteps, a TimestepWindow or None")
        if len(window) != 2:
            raise ValueError(f"the window of timesteps is {window!r}, expected two timesteps")
        ends = [_timestep("an end of the window", end) for end in window]
        return cls(max(ends), min(ends))

    @classmethod
    def from_list(cls, saved: Sequence[float]) -> TimestepWindow:
        """Read what ``to_list`` gave. The order does not matter.

        Raises:
            TypeError, ValueError: As ``of``, also for None.
        """
        window = cls.of(list(saved))
        assert window is not None
        return window

    def contains(self, timestep: float | Tensor) -> bool:
        """Return whether a timestep, or every one of a tensor, is in the window."""
        if isinstance(timestep, Tensor):
            return bool(((timestep >= self.lowest) & (timestep <= self.highest)).all())
        return self.lowest <= timestep <= self.highest

    def to_list(self) -> list[float]:
        """Return [highest, lowest], as JSON."""
        return [self.highest, self.lowest]

    def __str__(self) -> str:
        return f"{self.highest:g} to {self.lowest:g}"


Window: TypeAlias = "TimestepWindow | tuple[float, float] | list[float]"
"""What arguments take for a window: one, or two timesteps in either order."""


def _timestep(name: str, value: Any) -> float:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} is {value!r}, expected a timestep")
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}, expected a finite timestep")
    return float(value)
