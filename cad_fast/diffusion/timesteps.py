"""Windows of timesteps."""

from __future__ import annotations

from torch import Tensor


def in_window(timestep: float | Tensor, window: tuple[float, float]) -> bool:
    """Whether a call's timestep, of every row, lies in the window (both ends inclusive)."""
    low, high = window
    if isinstance(timestep, Tensor):
        return bool(((timestep >= low) & (timestep <= high)).all())
    return low <= timestep <= high
