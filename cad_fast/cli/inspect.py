"""``cad-fast inspect``: which layers a model has, what each is, and which presets, neurons and heads there are."""

from __future__ import annotations

import argparse
import itertools
import re
from typing import Any

from .common import add_model, load, model_of, say

HELP = "list a model's layers: what each is, in which presets, with how many neurons and heads"
EXAMPLE = "cad-fast inspect zoo:emoji"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, and which of its layers."""
    add_model(parser)
    parser.add_argument("--target-modules", help="only these: a preset or a regular expression (default: all)")
    parser.add_argument("--all", action="store_true", help="one line for each layer (default: one for all alike)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """The layers as a table, and what each preset holds."""
    from ..components.inspection import count_presets, inspect_layers
    from ..diffusion.denoisers import denoiser_name, denoiser_of, denoisers_in
    from ..diffusion.layers import match_modules

    pipeline = load(arguments)
    table = inspect_layers(pipeline)
    if arguments.target_modules is not None:
        wanted = match_modules(denoiser_of(pipeline), arguments.target_modules)
        table = [layer for layer in table if layer.module in wanted]
    presets = count_presets(table)
    others = [name for name in denoisers_in(pipeline) if name != denoiser_name(pipeline)]
    if not arguments.json:
        for line in _lines(table, every=arguments.all):
            say(arguments, line)
        say(arguments, "")
        for preset, counts in presets.items():
            say(arguments, f"{preset:20s} " + ", ".join(f"{count} {name}" for name, count in counts.items() if count))
        if others:
            say(arguments, f"further denoisers: {', '.join(others)} (--part)")
    return {
        **model_of(arguments),
        "denoiser": denoiser_name(pipeline),
        "further_denoisers": others,
        "presets": presets,
        "layers": [layer.to_dict() for layer in table],
    }


def _lines(table: list[Any], *, every: bool) -> list[str]:
    """A line for each layer, or for all that differ in numbers of their paths alone."""

    def alike(layer: Any) -> tuple[Any, ...]:
        path = layer.module if every else re.sub(r"(?<=\.)\d+(?=\.)", "*", layer.module)
        shares = layer.shares_heads_of is not None
        return path, layer.role, layer.presets, layer.weights, layer.neurons, layer.heads, layer.filters, shares

    lines = []
    groups: dict[tuple[Any, ...], int] = {}
    for layer in table:
        groups[alike(layer)] = groups.get(alike(layer), 0) + 1
    width = max(itertools.chain((len(key[0]) for key in groups), [6]))
    for (path, role, presets, weights, neurons, heads, filters, shares), count in groups.items():
        has = [f"{number} {name}" for number, name in ((neurons, "neurons"), (heads, "heads"), (filters, "filters"))]
        has = [text for text in has if not text.startswith("0 ")]
        text = ", ".join([f"{weights} weights", *has]) + (" (shared)" if shares else "")
        times = "" if every else f"{count:4d} x "
        lines.append(f"{times}{path:{width}s}  {role}; {text}; in {', '.join(presets) or 'no preset'}")
    return lines
