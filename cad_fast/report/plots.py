"""Plots as PNG bytes, drawn without pyplot, so that no global state of matplotlib is touched.

They need matplotlib, which comes with the extra "report".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..evaluation.comparison import Comparison
from .drawing import GREY, as_png, error_bars, new_figure, style_axes

# Okabe and Ito's palette, told apart with any colour vision; the yellow, too light on white, is left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")


MARKERS = "osD^vPX"


KINDS = {
    "feed-forward": "#0072B2",
    "self-attention": "#E69F00",
    "cross-attention": "#D55E00",
    "attention": "#CC79A7",
    "convolution": "#009E73",
    "other": "#8c959f",
}


_BLOCK = re.compile(r"mid_block|\w*blocks\.\d+")


def _curve(axes: Any, points: Sequence[Mapping[str, Any]], key: str, shift: float, **style: Any) -> None:
    """``key`` of the points that have it against the ratio in percent times ``shift``, with the intervals given."""
    known = [point for point in points if point.get(key) is not None]
    if known:
        values = [float(point[key]) for point in known]
        errors = error_bars(values, [point.get("intervals", {}).get(key) for point in known])
        ratios = [100 * shift * point["ratio"] for point in known]
        axes.errorbar(ratios, values, yerr=errors, capsize=3, elinewidth=1, markersize=6, linewidth=1.8, **style)


def _ratio_axis(axes: Any, curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    ratios = sorted({100 * point["ratio"] for points in curves.values() for point in points})
    if ratios[0] > 0 and ratios[-1] >= 8 * ratios[0]:
        axes.set_xscale("log")
    # With many ratios only some are named, or the names would run into one another.
    shown = ratios[:: -(-len(ratios) // 8)]
    axes.set_xticks(shown, [f"{ratio:g}%" for ratio in shown])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("edited share of the components", fontsize=11)


def tradeoff_plot(
    curves: Mapping[str, Sequence[Mapping[str, Any]]], *, before: float | None = None, title: str | None = None
) -> bytes:
    """Target accuracy (left) and what is kept of the others and of the style (right) against the ratio, as PNG.

    ``curves`` has, per set of weights, points as ``Comparison.point`` gives them: "ratio" in 0..1; "target", "others"
    and "style" in percent (the latter two may be missing); "intervals" with (low, high) under the same names.
    ``before`` is the target's accuracy without the edit, in percent. Raises ValueError when there are no points.
    """
    curves = {name: sorted(points, key=lambda point: point["ratio"]) for name, points in curves.items() if points}
    if not curves:
        raise ValueError("there are no points to plot")
    figure = new_figure(10.5, 4.6)
    left, right = figure.subplots(1, 2)
    for i, (name, points) in enumerate(curves.items()):
        look = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        # Side by side, so that the whiskers of one curve do not hide those of another.
        shift = 1 + 0.035 * (i - (len(curves) - 1) / 2)
        _curve(left, points, "target", shift, label=name, **look)
        _curve(right, points, "others", shift, **look)
        _curve(right, points, "style", shift, linestyle="--", markerfacecolor="white", alpha=0.75, **look)
    if before is not None:
        left.axhline(before, color=GREY, linestyle=":", linewidth=1.4, label="before the edit")
    right.axhline(100, color=GREY, linestyle=":", linewidth=1.4)
    for axes, text in ((left, "recognised (%)"), (right, "kept of what was recognised (%)")):
        style_axes(axes, "both")
        _ratio_axis(axes, curves)
        axes.set_ylabel(text, fontsize=11)
        axes.set_ylim(bottom=-3)  # room for a marker at zero
        axes.margins(y=0.08)
    left.set_title("the target", fontsize=12, loc="left")
    right.set_title("everything else", fontsize=12, loc="left")
    left.set_ylim(-3, 104)
    if any(point.get("style") is not None for points in curves.values() for point in points):
        right.plot([], [], color=GREY, marker="o", label="other concepts")
        right.plot([], [], color=GREY, marker="o", linestyle="--", markerfacecolor="white", label="style")
        right.legend(frameon=False, fontsize=10, loc="lower left")
    if len(curves) > 1 or before is not None:
        handles, names = left.get_legend_handles_labels()
        columns = min(len(names), 5)
        figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=10)
    if title:
        figure.suptitle(title, fontsize=13)
    return as_png(figure)


def recall_plot(curves: Mapping[str, Sequence[Mapping[str, Any]]], *, title: str | None = None) -> bytes:
    """How often a concept is recognised against the share of weights that an edit changes, a curve per name, as PNG.

    A point has "ratio" and "share" in 0..1, and "interval" (low, high). Raises ValueError when there are no points.
    """
    curves = {name: sorted(points, key=lambda point: point["ratio"]) for name, points in curves.items() if points}
    if not curves:
        raise ValueError("there are no points to plot")
    figure = new_figure(7.5, 4.4)
    axes = figure.subplots()
    for i, (name, points) in enumerate(curves.items()):
        percents = [
            {
                "ratio": point["ratio"],
                "recognised": 100 * point["share"],
                "intervals": {"recognised": tuple(100 * limit for limit in point["interval"])},
            }
            for point in points
        ]
        look = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        _curve(axes, percents, "recognised", 1 + 0.035 * (i - (len(curves) - 1) / 2), label=name, **look)
    style_axes(axes, "both")
    _ratio_axis(axes, curves)
    axes.set_ylabel("recognised (%)", fontsize=11)
    axes.set_ylim(-3, 104)
    if len(curves) > 1:
        figure.legend(
            *axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=10
        )
    if title:
        figure.suptitle(title, fontsize=13)
    return as_png(figure)


def bars_before_after(comparison: Comparison, *, title: str | None = None) -> bytes:
    """Accuracy of each concept before and after with 95% intervals, targets on top, as PNG."""
    names = [*comparison.targets, *comparison.other_concepts]
    figure = new_figure(8.5, 1.9 + 0.46 * len(names))
    axes = figure.subplots()
    sides = {
        "before": ("#9fb8cc", [comparison.concepts[name].before for name in names], -0.2),
        "after": ("#0072B2", [comparison.concepts[name].after for name in names], 0.2),
    }
    for side, (colour, shares, offset) in sides.items():
        values = [100 * share for share in shares]
        limits = [getattr(comparison.concepts[name], f"{side}_interval") for name in names]
        errors = error_bars(values, [(100 * low, 100 * high) for low, high in limits])
        places = [row + offset for row in range(len(names))]
        whiskers = {"ecolor": "#3d444d", "elinewidth": 1, "capsize": 2.5}
        axes.barh(places, values, height=0.38, color=colour, label=side, xerr=errors, error_kw=whiskers)
    style_axes(axes, "x")
    axes.set_yticks(range(len(names)), [f"{name} (target)" if name in comparison.targets else name for name in names])
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        label.set_fontweight("bold" if name in comparison.targets else "normal")
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 104)
    axes.set_xlabel("recognised (%), with 95% intervals", fontsize=11)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    if title:
        figure.suptitle(title, fontsize=13)
    return as_png(figure)


def block_and_kind(module: str) -> tuple[str, str]:
    """Which block of a denoiser a module belongs to, and which kind of layer it is, by its name.

    "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj" is of ("down_blocks.1", "feed-forward").
    """
    match = _BLOCK.match(module)
    block = match.group() if match else module.partition(".")[0]
    parts = set(module.split("."))
    for kind, names in (
        ("self-attention", {"attn1"}),
        ("cross-attention", {"attn2"}),
        ("attention", {"attn", "attention"}),
        ("feed-forward", {"ff", "ff_context", "mlp", "proj_mlp"}),
        ("convolution", {"resnets", "downsamplers", "upsamplers", "conv_in", "conv_out", "conv"}),
    ):
        if parts & names:
            return block, kind
    return block, "other"


def _depth(module: str) -> int:
    """Sorts a UNet's modules from input to output; diffusers registers the middle after the upper blocks."""
    stages = ("mid_block", "up_blocks", "conv_norm_out", "conv_out")
    return next((i for i, stage in enumerate(stages, 1) if module.startswith(stage)), 0)


def module_share_plot(shares: Mapping[str, float], *, title: str | None = None) -> bytes:
    """Where the selected components sit: per block, from input to output, stacked by kind of layer, as PNG.

    ``shares`` maps module names to counts or shares of any unit; they are shown in percent of their sum. Raises
    ValueError when one is negative or all are zero.
    """
    total = sum(shares.values())
    if not total > 0 or min(shares.values()) < 0:
        raise ValueError("shares must not be negative, nor all be zero")
    blocks: dict[str, dict[str, float]] = {}
    for module, share in sorted(shares.items(), key=lambda item: _depth(item[0])):
        block, kind = block_and_kind(module)
        kinds = blocks.setdefault(block, {})
        kinds[kind] = kinds.get(kind, 0.0) + 100 * share / total
    figure = new_figure(8.5, 1.4 + 0.4 * len(blocks))
    axes = figure.subplots()
    starts = [0.0] * len(blocks)
    for kind, colour in KINDS.items():
        values = [kinds.get(kind, 0.0) for kinds in blocks.values()]
        if any(values):
            axes.barh(range(len(blocks)), values, left=starts, height=0.7, color=colour, label=kind)
            starts = [start + value for start, value in zip(starts, values, strict=True)]
    for row, end in enumerate(starts):
        axes.annotate(f"{end:.1f}%", (end, row), (5, 0), textcoords="offset points", va="center", fontsize=10)
    style_axes(axes, "x")
    axes.set_yticks(range(len(blocks)), list(blocks))
    axes.set_ylim(len(blocks) - 0.4, -0.6)
    axes.set_xlim(0, max(starts) * 1.12)
    axes.set_xlabel("share of the selected components (%)", fontsize=11)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=10)
    if title:
        figure.suptitle(title, fontsize=13)
    return as_png(figure)
