"""When an attribution has done enough: by what it has reached, or by what it has cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

# Half the width of a 95% interval in standard errors.
_HALF = 1.96


@dataclass(frozen=True)
class StopWhen:
    """Stop an estimate at the first of these that is reached. None does not count.

    A run looks after every whole partition (ablated gradient) or every batch of ablations (regression), never in
    between. So a run that stopped after k gives the scores of a run of k. Concepts that share the passes of a
    regression stop together, when the last of them has reached r.

    Args:
        r: The correlation with J measured under ``ablations`` random ablations. They are drawn for this alone, so that
            a holdout's r is another.
        interval_width: The mean width of a score's 95% interval, in standard deviations of the scores.
        seconds: The time of estimating, counted anew when a run is resumed.
        row_evaluations: Rows through the denoiser, forward, and again backward where there is a gradient.
        ablations: How many ablations r is measured under, at least 8.

    Raises:
        ValueError: A value is out of range, or nothing is given.
    """

    r: float | None = None
    interval_width: float | None = None
    seconds: float | None = None
    row_evaluations: int | None = None
    ablations: int = 64

    def __post_init__(self) -> None:
        given = {key: value for key, value in asdict(self).items() if key != "ablations" and value is not None}
        if not given:
            raise ValueError("StopWhen needs r, interval_width, seconds or row_evaluations")
        for key, value in given.items():
            if not value > 0 or (key == "r" and value >= 1):
                raise ValueError(
                    f"StopWhen: {key} is {value}, expected {'between 0 and 1' if key == 'r' else 'above 0'}"
                )
        if self.ablations < 8:
            raise ValueError(f"StopWhen: ablations is {self.ablations}, expected at least 8")

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


class Watch:
    """Looks at running estimates. ``reason`` says in words why they stopped; None if they did not.

    ``r`` is that of every target at the last look, empty if there was none.

    Args:
        stop: When to stop. None for never.
        r_of: Returns r of scores [t, n], one row per target, on the ablations that are kept for stopping.
    """

    def __init__(self, stop: StopWhen | None = None, r_of: Callable[[Tensor], list[float]] | None = None) -> None:
        self.stop, self.r_of = stop, r_of
        self.started = time.perf_counter()
        self.r: list[float] = []
        self.reason: str | None = None

    def enough(self, values: Tensor, standard_error: Tensor | None, row_evaluations: int) -> bool:
        """Return whether scores [t, n], one row per target, that have cost so much will do."""
        stop = self.stop
        if stop is None:
            return False
        if self.r_of is not None:
            self.r = self.r_of(values)
        seconds = time.perf_counter() - self.started
        width = None
        if standard_error is not None and float(values.std()) > 0:
            width = 2 * _HALF * float(standard_error.double().square().mean().sqrt()) / float(values.double().std())
        if stop.r is not None and self.r and all(r >= stop.r for r in self.r):
            every = f" for every one of {len(self.r)} concepts" if len(self.r) > 1 else ""
            self.reason = f"r reached {min(self.r):.3f}{every}, asked for {stop.r:g}"
        elif stop.interval_width is not None and width is not None and width <= stop.interval_width:
            self.reason = f"the interval width reached {width:.3g}, asked for {stop.interval_width:g}"
        elif stop.seconds is not None and seconds >= stop.seconds:
            self.reason = f"{seconds:.1f} seconds were spent of {stop.seconds:g}"
        elif stop.row_evaluations is not None and row_evaluations >= stop.row_evaluations:
            self.reason = f"{row_evaluations} row evaluations were spent of {stop.row_evaluations}"
        return self.reason is not None

    def shown(self) -> dict[str, str]:
        """Return the lowest r, for a progress bar."""
        return {"r": f"{min(self.r):.3f}"} if self.r else {}

    def to_dict(self, target: int = 0) -> dict[str, Any] | None:
        """Return what was waited for and how it ended for one of the targets, as JSON. None where nothing was."""
        if self.stop is None:
            return None
        r = self.r[target] if self.r else None
        return {**self.stop.to_dict(), "reason": self.reason or "none was reached", "r": r}
