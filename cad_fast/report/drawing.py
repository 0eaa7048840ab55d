"""What all plots share: figures of one style, error bars, and PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from ..extras import require

GREY, GRID = "#59636e", "#e4e7eb"


def new_figure(width: float, height: float) -> Any:
    require("matplotlib", "report")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    layout: Any = figure.get_layout_engine()  # the constrained one, which takes these
    layout.set(w_pad=0.12, h_pad=0.1)
    return figure


def as_png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    # The software's version is left out, so that the same plot is the same file.
    figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None})
    return buffer.getvalue()


def style_axes(axes: Any, grid: str) -> None:
    axes.set_axisbelow(True)
    axes.grid(True, axis=grid, color=GRID, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=GREY, labelcolor="black", labelsize=10)


def error_bars(values: Sequence[float], intervals: Sequence[tuple[float, float] | None]) -> list[list[float]]:
    """Distances [2, n] of the limits from the values; 0 where there is no interval."""
    limits = [(value, value) if limit is None else limit for value, limit in zip(values, intervals, strict=True)]
    below = [max(value - low, 0.0) for value, (low, _) in zip(values, limits, strict=True)]
    return [below, [max(high - value, 0.0) for value, (_, high) in zip(values, limits, strict=True)]]
