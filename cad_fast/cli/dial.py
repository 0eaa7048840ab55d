"""``cad-fast dial``: a strip over strengths of edits, from erasing to amplifying."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .common import add_model, add_sampling, add_size, add_timesteps, generation_of, load, model_of, say, window

HELP = "draw a strip over strengths of edits, from erasing to amplifying, in one batch"
EXAMPLE = 'cad-fast dial zoo:emoji --edit edits/no-car --prompt "a car in noto style" -o strip.png'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the edits, the prompts and the strengths."""
    add_model(parser)
    parser.add_argument("--edit", nargs="+", required=True, help="folder of an edit; several all have the strength")
    parser.add_argument("--prompt", action="append", required=True, help="repeat for more rows")
    parser.add_argument("--strength", type=float, nargs="+", help="0 off, 1 the edit (default 1.5 1 0.5 0 -0.5 -1)")
    add_timesteps(parser, "act in these timesteps only")
    parser.add_argument("--branch", choices=("both", "conditional"), default="both", help="default both")
    parser.add_argument("-o", "--output", required=True, help="the picture to write, PNG")
    add_sampling(parser)
    add_size(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Draw the strip and write it."""
    from ..files import require_writable_folder, write_png
    from ..report.strip import STRENGTHS, strip

    output = Path(arguments.output)
    if output.suffix.lower() != ".png":
        raise ValueError(f"--output is {arguments.output}, expected a file name that ends in .png")
    options = generation_of(arguments).to_kwargs()
    require_writable_folder(output.parent)
    drawn = strip(
        load(arguments),
        [Path(edit) if Path(edit).is_dir() else edit for edit in arguments.edit],
        arguments.prompt,
        arguments.strength or STRENGTHS,
        seed=arguments.seed,
        windows=window(arguments),
        branch=arguments.branch,
        progress=not arguments.quiet,
        **options,
    )
    write_png(output, drawn.sheet)
    say(arguments, f"written to {output}")
    return {**model_of(arguments), "strip": str(output), "strengths": drawn.strengths, "prompts": drawn.prompts}
