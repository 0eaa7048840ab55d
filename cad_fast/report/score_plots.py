"""Plots about scores, as PNG bytes: cost against faithfulness, linearity, shared components, damage.

They need matplotlib, which comes with the extra "report".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..edits.damage import Damage
from .drawing import as_png, error_bars, new_figure, style_axes
from .plots import COLOURS, GREY, MARKERS


def cost_plot(points: Sequence[Mapping[str, Any]], *, title: str | None = None) -> bytes:
    """Correlation with measured J against row evaluations and seconds, a curve per "method".

    A point has "method", "row_evaluations", "seconds", "r" and may have "interval" (low, high).
    """
    figure = new_figure(11, 4.8)
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    panels = figure.subplots(1, 2, sharey=True)
    methods = list(dict.fromkeys(point["method"] for point in points))
    for axes, (key, text) in zip(
        panels,
        (("row_evaluations", "rows through the denoiser (backward counts again)"), ("seconds", "seconds")),
        strict=True,
    ):
        for number, method in enumerate(methods):
            of_method = sorted((point for point in points if point["method"] == method), key=lambda point: point[key])
            values = [point["r"] for point in of_method]
            look = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
            errors = error_bars(values, [point.get("interval") for point in of_method])
            axes.errorbar([point[key] for point in of_method], values, yerr=errors, capsize=3, label=method, **look)
        style_axes(axes, "both")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # legible where less than a decade is shown, too
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(text, fontsize=11)
    panels[0].set_ylabel("r with measured J, held-out ablations", fontsize=11)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    if title:
        figure.suptitle(title, fontsize=13)
    return as_png(figure)


def fractions_plot(curves: Mapping[str, Sequence[Mapping[str, Any]]], *, title: str | None = None) -> bytes:
    """Correlation and slope of ``Trust.to_dict`` entries against the ablated fraction, a curve per name."""
    figure = new_figure(11, 4.6)
    left, right = figure.subplots(1, 2)
    for number, (name, checks) in enumerate(curves.items()):
        checks = sorted(checks, key=lambda check: check["fraction"])
        look = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "capsize": 3}
        for axes, key in ((left, "pearson"), (right, "slope")):
            values = [check[key] for check in checks]
            errors = error_bars(values, [check[f"{key}_interval"] for check in checks])
            axes.errorbar([100 * check["fraction"] for check in checks], values, yerr=errors, label=name, **look)
    right.axhline(1, color=GREY, linestyle=":", linewidth=1.4)
    for axes, text in ((left, "r"), (right, "slope (1: calibrated)")):
        style_axes(axes, "both")
        axes.set_xscale("log")
        axes.set_xticks([1, 5, 10, 20, 50], ["1", "5", "10", "20", "50"])
        axes.minorticks_off()
        axes.set_xlabel("ablated components (%)", fontsize=11)
        axes.set_ylabel(text, fontsize=11)
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    if title:
        figure.suptitle(title, fontsize=13)
    return as_png(figure)


def overlap_plot(shares: Tensor, names: Sequence[str], *, title: str | None = None) -> bytes:
    """A heat map of ``edits.damage.overlap``, float [c, c], in percent."""
    if tuple(shares.shape) != (len(names), len(names)):
        raise ValueError(f"shares has shape {list(shares.shape)}, expected [{len(names)}, {len(names)}]")
    figure = new_figure(1.9 + 0.62 * len(names), 1.6 + 0.56 * len(names))
    axes = figure.subplots()
    values = (100 * shares).tolist()
    others = [values[i][j] for i in range(len(names)) for j in range(len(names)) if i != j]
    image = axes.imshow(values, cmap="Blues", vmin=0, vmax=max(others, default=100) or 100)
    limit = image.get_clim()[1]
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            colour = "white" if value > 0.6 * limit else "black"
            axes.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="top components in common (%)", shrink=0.8)
    if title:
        figure.suptitle(title, fontsize=13)
    return as_png(figure)


def damage_plot(
    damages: Mapping[str, Damage], measured: Mapping[str, float] | None = None, *, title: str | None = None
) -> bytes:
    """Predicted damage per concept in percent of its J; with ``measured`` the change of accuracy, -1..1, beside it.

    Raises ValueError when a concept's damage is not known relative to its J.
    """
    unknown = [name for name, damage in damages.items() if damage.relative is None]
    if unknown:
        raise ValueError(f"the scores of {unknown[0]!r} do not know J of the intact network")
    names = list(damages)
    figure = new_figure(9.5 if measured else 6.5, 1.6 + 0.36 * len(names))
    panels = figure.subplots(1, 2 if measured else 1, sharey=True, squeeze=False)[0]
    panels[0].barh(range(len(names)), [100 * float(damages[name].relative or 0) for name in names], color=COLOURS[0])
    panels[0].set_xlabel("predicted change of J (%)", fontsize=11)
    if measured:
        panels[1].barh(range(len(names)), [100 * measured.get(name, float("nan")) for name in names], color=COLOURS[1])
        panels[1].set_xlabel("measured change of recognition (points)", fontsize=11)
    for axes in panels:
        style_axes(axes, "x")
        axes.axvline(0, color=GREY, linewidth=1)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    if title:
        figure.suptitle(title, fontsize=13)
    return as_png(figure)
