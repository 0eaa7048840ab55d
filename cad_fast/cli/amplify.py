"""``cad-fast amplify``: an edit that brings a concept out, in one call."""

from __future__ import annotations

import argparse
from typing import Any

from . import making
from .common import add_sampling, original_of

HELP = "make an edit that removes what suppresses a concept"
EXAMPLE = "cad-fast amplify zoo:emoji-erased car --keep cat face -o edits/car-back"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, the concept, its pictures, what to keep, and how much to change."""
    making.add_arguments(parser)
    parser.add_argument(
        "--images", metavar="FOLDER", help="pictures of the concept (default: the zoo's own, else samples of the model)"
    )
    parser.add_argument(
        "--original", metavar="MODEL", help="the model before the concept was taken out of it, in place of --images"
    )
    add_sampling(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the edit, and save it."""
    settings = making.settings(arguments)
    pipeline = making.prepared(arguments)
    from ..making import amplify

    settings |= {"images": arguments.images, "original": original_of(arguments)}
    return making.finished(arguments, amplify(pipeline, arguments.concept, **settings))
