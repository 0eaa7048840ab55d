"""What is said of rows: which edits they use, and what is known of the call that they are in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from ...diffusion.timesteps import TimestepWindow, Window


class EditUse(NamedTuple):
    """One edit in one row: at which strength, and in which window of timesteps; None for all."""

    name: str
    strength: float = 1.0
    window: TimestepWindow | None = None

    def acts_at(self, timestep: float) -> bool:
        """Return whether the edit changes anything at this timestep."""
        return self.strength != 0 and (self.window is None or self.window.contains(timestep))


RowUses = tuple[EditUse, ...]


@dataclass(frozen=True)
class CallFacts:
    """What is known of a denoiser call before it runs: its number of rows, the sample, the timestep, all arguments."""

    rows: int
    sample: Tensor
    timestep: Any
    inputs: Mapping[str, Any] = field(default_factory=dict)


GivenUse: TypeAlias = "EditUse | tuple[str] | tuple[str, float] | tuple[str, float, Window | None]"
GivenRows = Sequence[Sequence[GivenUse]]
Assignment = GivenRows | Callable[[CallFacts], Sequence[RowUses]]


def checked_strength(strength: Any, name: str) -> float:
    """``strength`` as a float. Raises ValueError, naming the edit, unless it is a finite number."""
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not math.isfinite(strength):
        raise ValueError(f"the strength of edit {name!r} is {strength!r}, expected a finite number")
    return float(strength)


def checked_window(window: Any, name: str) -> TimestepWindow | None:
    """Return ``TimestepWindow.of(window)``. Raises ValueError, naming the edit, unless it is a window or None."""
    try:
        return TimestepWindow.of(window)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the window of edit {name!r} is {window!r}, expected two timesteps, or None") from error
