"""``cad-fast edit import``: make an edit of a PEFT adapter."""

from __future__ import annotations

import argparse
from typing import Any

from .common import MODEL_HELP, add_loading, load, model_of, say

HELP = "make an edit of a PEFT adapter (SHiRA or Super-Tuning)"
EXAMPLE = "cad-fast edit import adapters/no-cat --model zoo:emoji --name no-cat -o edits/no-cat"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The adapter, the model, and where the edit goes."""
    parser.add_argument("folder", metavar="FOLDER", help="folder of the adapter")
    parser.add_argument("--model", required=True, help=MODEL_HELP)
    add_loading(parser)
    parser.add_argument("--name", default="adapter", help="of the edit (default adapter)")
    parser.add_argument("-o", "--output", required=True, help="folder for the edit")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """A PEFT adapter as an edit."""
    from ..edits import Edit

    edit = Edit.from_peft(load(arguments), arguments.folder, arguments.name)
    edit.save_pretrained(arguments.output)
    say(arguments, f"{edit!r}\nwritten to {arguments.output}")
    return {
        **model_of(arguments),
        "name": edit.name,
        "factor": edit.factor,
        "n_weights": edit.n_weights,
        "digest": edit.digest(),
        "folder": arguments.output,
    }
