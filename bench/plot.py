"""A picture of the figures: cad_fast's time and its peers', each divided by the best dense call's."""

from __future__ import annotations

import io
from typing import Any


def ratio_plot(lines: list[dict[str, Any]]) -> bytes:
    """PNG: one panel per op and dtype, rows per variant against time relative to dense (both logarithmic).

    Every shape is a thin line, their geometric mean a thick one with its contender's name.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys((line["op"], line["dtype"]) for line in lines))
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(6 * columns, 4.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        _draw(axes, [line for line in lines if (line["op"], line["dtype"]) == panel])
        axes.set_title(f"{panel[0]}, {panel[1]}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _draw(axes: Any, lines: list[dict[str, Any]]) -> None:
    contenders = ["cad_fast", *lines[0]["peers"]]
    counts = sorted({line["rows_per_variant"] for line in lines})
    for number, contender in enumerate(contenders):
        color = f"C{number}"
        means = []
        for shape in dict.fromkeys(line["shape"] for line in lines):
            own = [line for line in lines if line["shape"] == shape]
            axes.plot(
                [line["rows_per_variant"] for line in own],
                [_of_dense(line, contender) for line in own],
                color=color,
                linewidth=0.6,
                alpha=0.4,
            )
        for count in counts:
            values = [_of_dense(line, contender) for line in lines if line["rows_per_variant"] == count]
            means.append(_geometric_mean(values))
        axes.plot(counts, means, color=color, linewidth=2.2, marker="o", label=contender)
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", yscale="log", xlabel="rows per variant", ylabel="time, of the best dense call")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.legend(fontsize=8)


def _of_dense(line: dict[str, Any], contender: str) -> float:
    factor = 1.0 if contender == "cad_fast" else line["peers"].get(contender, float("nan"))
    return line["of_dense"] * factor


def _geometric_mean(values: list[float]) -> float:
    product = 1.0
    for value in values:
        product *= value
    return product ** (1 / len(values))
