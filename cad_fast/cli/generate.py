"""``cad-fast generate``: draw prompts, with and without an edit."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .common import add_model, add_sampling, add_size, generation_of, load, model_of, say

if TYPE_CHECKING:
    from PIL import Image

    from ..edits import Edit

HELP = "draw prompts, with and without an edit"
EXAMPLE = (
    'cad-fast generate zoo:emoji --prompt "a cat in noto style" --edit edits/no-cat --strength 0 0.5 1 -o pictures'
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the prompts, and the edit with its strengths."""
    add_model(parser)
    parser.add_argument("--prompt", action="append", required=True, help="repeat for more")
    parser.add_argument("--images-per-prompt", type=int, default=4, help="default 4")
    parser.add_argument("--edit", help="folder of an edit")
    parser.add_argument("--strength", type=float, nargs="+", help="0 off, 1 the edit; several make a strip")
    add_size(parser)
    parser.add_argument("-o", "--output", required=True, help="folder for the pictures and the contact sheet")
    add_sampling(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Draw every prompt on the same seeds, once per strength, and a contact sheet of all."""
    from ..files import require_writable_folder, write_png

    output = require_writable_folder(arguments.output)
    if arguments.images_per_prompt < 1:
        raise ValueError(f"--images-per-prompt is {arguments.images_per_prompt}, expected at least 1")
    if arguments.strength is not None and arguments.edit is None:
        raise ValueError("--strength needs --edit")
    options = generation_of(arguments).to_kwargs()
    pipeline = load(arguments)
    # After the model, so that what is wrong with it is said at once.
    from ..edits import Edit
    from ..report.sheets import contact_sheet

    edit = Edit.from_pretrained(arguments.edit, pipeline) if arguments.edit is not None else None
    strengths = arguments.strength or ([0.0, 1.0] if edit else [0.0])
    seeds = list(range(arguments.seed, arguments.seed + arguments.images_per_prompt))
    rows, labels, files = [], [], []
    for prompt_number, prompt in enumerate(arguments.prompt):
        for strength in strengths:
            images = _draw(pipeline, prompt, seeds, options, edit, strength)
            rows.append(images)
            labels.append(prompt if edit is None else f"{prompt}, strength {strength:g}")
            for seed, image in zip(seeds, images, strict=True):
                name = f"{prompt_number:02d}_seed{seed}" + ("" if edit is None else f"_{edit.name}_{strength:g}")
                files.append(str(write_png(output / f"{name}.png", image)))
    sheet = write_png(output / "sheet.png", contact_sheet(rows, labels, [f"seed {seed}" for seed in seeds]))
    say(arguments, f"{len(files)} pictures and {sheet}")
    return {**model_of(arguments), "pictures": files, "sheet": str(sheet)}


def _draw(
    pipeline: Any, prompt: str, seeds: list[int], options: dict[str, Any], edit: Edit | None, strength: float
) -> list[Image.Image]:
    from ..diffusion.context import generators, plain_tensors, silent
    from ..diffusion.dtypes import one_dtype

    def draw() -> list[Image.Image]:
        with plain_tensors(), silent(pipeline), one_dtype(pipeline):
            return pipeline(prompt=[prompt] * len(seeds), generator=generators(seeds), **options).images

    if edit is None:
        return draw()
    with edit.applied(pipeline, strength):
        return draw()
