"""``cad-fast demo``: the whole path on an embedded model, with a report."""

from __future__ import annotations

import argparse
from typing import Any

from ..zoo.concepts import MODELS
from .common import say

HELP = "erase and amplify concepts of an embedded model, with a report"
EXAMPLE = "cad-fast demo --output demo-output"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """On which model, where to, and how many pictures."""
    parser.add_argument("--model", choices=MODELS, default=MODELS[0], help=f"which of the zoo (default {MODELS[0]})")
    parser.add_argument("-o", "--output", default="demo-output", help="folder for report.html (default demo-output)")
    parser.add_argument("--per-concept", type=int, default=None, help="images per concept in the evaluations")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the demonstration and print its figures."""
    from ..demo.demo import run_demo, table

    results, summary = run_demo(
        arguments.output, model=arguments.model, per_concept=arguments.per_concept, progress=not arguments.quiet
    )
    say(arguments, f"{table(results)}\nreport: {summary['report']}")
    return summary
