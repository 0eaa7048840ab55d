"""``cad-fast edit export``: write an edit as a PEFT adapter or as a checkpoint of the edited model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal

from .common import MODEL_HELP, add_loading, load, model_of, say

HELP = "write an edit as a PEFT adapter (SHiRA or Super-Tuning) or as a checkpoint of the edited model"
EXAMPLE = "cad-fast edit export edits/no-cat --model zoo:emoji --to peft -o adapters/no-cat"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The edit, the model, and what is written."""
    parser.add_argument("folder", metavar="FOLDER", help="folder or Hub repository of an edit")
    parser.add_argument("--model", required=True, help=MODEL_HELP)
    add_loading(parser)
    parser.add_argument("--to", choices=("peft", "checkpoint"), required=True)
    parser.add_argument("--peft-format", choices=("shira", "supertuning"), help="default shira")
    parser.add_argument("--strength", type=float, default=1.0, help="default 1")
    parser.add_argument("--whole-pipeline", action="store_true", help="checkpoint: write all of the pipeline")
    parser.add_argument("-o", "--output", required=True, help="folder for it")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """An edit as a PEFT adapter, or the edited model as a checkpoint."""
    from ..edits import Edit
    from ..edits.files.checkpoints import export_checkpoint
    from ..edits.files.peft import export_peft

    if arguments.whole_pipeline and arguments.to != "checkpoint":
        raise ValueError("--whole-pipeline goes with --to checkpoint")
    if arguments.peft_format is not None and arguments.to != "peft":
        raise ValueError("--peft-format goes with --to peft")
    pipeline = load(arguments)
    edit = Edit.from_pretrained(arguments.folder, pipeline)
    if arguments.to == "peft":
        name = arguments.peft_format or "shira"
        export_peft(edit, pipeline, arguments.output, strength=arguments.strength, format=name)
    else:
        part: Literal["denoiser", "pipeline"] = "pipeline" if arguments.whole_pipeline else "denoiser"
        export_checkpoint(edit, pipeline, arguments.output, strength=arguments.strength, what=part)
    files = {
        str(path.relative_to(arguments.output)): path.stat().st_size
        for path in sorted(Path(arguments.output).rglob("*"))
        if path.is_file()
    }
    say(arguments, f"{edit!r} at strength {arguments.strength:g}\nwritten to {arguments.output}")
    return {
        **model_of(arguments),
        "name": edit.name,
        "to": arguments.to,
        "folder": arguments.output,
        "files": files,
    }
