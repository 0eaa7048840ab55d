"""``cad-fast erase``: an edit that erases a concept, in one call."""

from __future__ import annotations

import argparse
from typing import Any

from . import making
from .common import add_sampling

HELP = "make an edit that erases a concept and spares others"
EXAMPLE = "cad-fast erase zoo:emoji car -o edits/no-car"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, the concept, what to keep, and how much to change."""
    making.add_arguments(parser)
    parser.add_argument(
        "--base-prompt",
        action="append",
        metavar="TEXT",
        help="what is left of the prompt without the concept, one for all or one each: for a style the object alone",
    )
    add_sampling(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the edit, and save it."""
    settings = {**making.settings(arguments), "base_prompts": arguments.base_prompt}
    pipeline = making.prepared(arguments)
    from ..making import erase

    return making.finished(arguments, erase(pipeline, arguments.concept, **settings))
