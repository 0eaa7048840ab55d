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
    parser.add_argument("--image", help="a picture to draw again in place of new ones; the prompt says what it shows")
    parser.add_argument("--strength", type=float, nargs="+", help="0 off, 1 the edit (default 1.5 1 0.5 0 -0.5 -1)")
    add_timesteps(parser, "act in these timesteps only")
    parser.add_argument("--branch", choices=("both", "conditional"), default="both", help="default both")
    parser.add_argument("-o", "--output", required=True, help="the picture to write, PNG")
    add_sampling(parser)
    add_size(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Draw the strip and write it."""
    from ..files import require_writable_folder, write_png
    from ..report.image_strip import image_strip
    from ..report.strip import STRENGTHS, strip

    output = Path(arguments.output)
    if output.suffix.lower() != ".png":
        raise ValueError(f"--output is {arguments.output}, expected a file name that ends in .png")
    options = generation_of(arguments).to_kwargs()
    picture = None if arguments.image is None else _opened(arguments)
    require_writable_folder(output.parent)
    edits = [Path(edit) if Path(edit).is_dir() else edit for edit in arguments.edit]
    strengths = arguments.strength or STRENGTHS
    options |= {"seed": arguments.seed, "windows": window(arguments), "branch": arguments.branch}
    options |= {"progress": not arguments.quiet}
    found: dict[str, Any] = {"strip": str(output), "prompts": arguments.prompt}
    if picture is None:
        drawn = strip(load(arguments), edits, arguments.prompt, strengths, **options)
        write_png(output, drawn.sheet)
        found["strengths"] = drawn.strengths
    else:
        if arguments.guidance_scale is None:  # that of new pictures would draw another one
            options["guidance_scale"] = 1.0
        redrawn = image_strip(load(arguments), edits, picture, arguments.prompt[0], strengths, **options)
        write_png(output, redrawn.sheet)
        found |= {"image": arguments.image, **redrawn.to_dict()}
        say(arguments, f"drawn again, the picture is off by {redrawn.redrawn:.1%} in the mean")
    say(arguments, f"written to {output}")
    return {**model_of(arguments), **found}


def _opened(arguments: argparse.Namespace) -> Any:
    """The picture of ``--image``. Raises ValueError when it is none, or there are several prompts."""
    from ..recording.renoise import open_image

    if len(arguments.prompt) > 1:
        raise ValueError(f"--image takes one --prompt, which says what it shows, there are {len(arguments.prompt)}")
    return open_image(Path(arguments.image))
