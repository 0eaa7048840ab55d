"""``cad-fast edit diff``: compare the components of two edits."""

from __future__ import annotations

import argparse
from typing import Any

from .common import say

HELP = "compare the components of two edits"
EXAMPLE = "cad-fast edit diff edits/no-cat edits/no-dog"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two edits."""
    parser.add_argument("folders", nargs=2, metavar="FOLDER", help="folder or Hub repository of an edit")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Components in both edits, and in one of them only."""
    from ..edits import Edit
    from ..edits.files.describe import difference

    first, second = (Edit.from_pretrained(folder) for folder in arguments.folders)
    result = difference(first, second)
    say(arguments, "\n".join(_lines(result)))
    return result


def _lines(result: dict[str, Any]) -> list[str]:
    lines = [
        f"{result['first']} and {result['second']}, by {result['compared_as']}: {result['shared']} shared, "
        f"{result['only_first']} and {result['only_second']} of one only, Jaccard {result['jaccard']:.3f}"
    ]
    if result["factors"][0] != result["factors"][1]:
        lines.append(f"factors: {result['factors'][0]:g} and {result['factors'][1]:g}")
    if result["models_differ"]:
        lines.append(f"they are of different models: {result['models_differ']}")
    width = max(len(module) for module in result["modules"])
    for module, entry in result["modules"].items():
        numbers = f"{entry['shared']:>8} shared {entry['only_first']:>8} {entry['only_second']:>8} of one only"
        lines.append(f"  {module:<{width}} {numbers}  Jaccard {entry['jaccard']:.3f}")
    return lines
