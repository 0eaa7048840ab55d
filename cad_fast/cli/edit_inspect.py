"""``cad-fast edit inspect``: say what is in edits."""

from __future__ import annotations

import argparse
from typing import Any

from .common import say

HELP = "say what is in edits"
EXAMPLE = "cad-fast edit inspect edits/no-cat"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The edits."""
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="folder or Hub repository of an edit")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """What is in each edit."""
    from ..edits import Edit
    from ..edits.files.describe import describe, describe_text

    edits = {folder: Edit.from_pretrained(folder) for folder in arguments.folders}
    say(arguments, "\n\n".join(f"{folder}\n{describe_text(edit)}" for folder, edit in edits.items()))
    return {"edits": {folder: describe(edit) for folder, edit in edits.items()}}
