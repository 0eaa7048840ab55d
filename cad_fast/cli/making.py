"""What ``cad-fast erase`` and ``cad-fast amplify`` share: the concept, what is kept, and what is said in the end."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import add_model, generation_of, load, model_of, say, target_modules, window

if TYPE_CHECKING:
    from ..edits import Edit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, the concept, what to keep, and how much to change."""
    add_model(parser)
    parser.add_argument("concept", help="what it is called, such as car")
    parser.add_argument(
        "--prompt",
        action="append",
        help="a prompt that expresses it (repeat for more; default: the zoo model's own, else sentences with its name)",
    )
    parser.add_argument(
        "--keep",
        nargs="+",
        metavar="NAME",
        help="concepts to spare (default: the zoo model's other objects, else a few everyday things)",
    )
    parser.add_argument("--keep-file", metavar="FILE", help="JSON file {name: [prompts]} of concepts to spare")
    parser.add_argument("--ratio", type=float, help="share of the weights to remove (default: chosen by prediction)")
    parser.add_argument("--target-modules", default="cross-attention-kv", help="default cross-attention-kv")
    parser.add_argument("--timesteps", type=float, nargs=2, metavar=("HIGHEST", "LOWEST"), help="window to look at")
    parser.add_argument("--samples", type=int, default=12, help="pictures of the concept to sample (default 12)")
    parser.add_argument("--name", help="of the edit (default: concept and verb)")
    parser.add_argument("-o", "--output", required=True, help="folder for the edit and its card")


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments that ``cad_fast.erase`` and ``cad_fast.amplify`` share."""
    from ..files import read_json

    if arguments.keep is not None and arguments.keep_file is not None:
        raise ValueError("--keep and --keep-file both say what to spare: give one")
    return {
        "prompts": arguments.prompt,
        "keep": arguments.keep if arguments.keep_file is None else read_json(arguments.keep_file),
        "ratio": arguments.ratio,
        "target_modules": target_modules(arguments.target_modules),
        "timesteps": window(arguments),
        "samples": arguments.samples,
        "seed": arguments.seed,
        "name": arguments.name,
        "progress": not arguments.quiet,
        **generation_of(arguments).to_kwargs(),
    }


def prepared(arguments: argparse.Namespace) -> Any:
    """Check the output folder, then load the pipeline."""
    from ..files import require_writable_folder

    require_writable_folder(arguments.output)
    return load(arguments)


def finished(arguments: argparse.Namespace, edit: Edit) -> dict[str, Any]:
    """Save the edit with its card, and say what it is predicted to do."""
    from ..edits import CardInfo

    edit.save_pretrained(arguments.output)
    base = None if Path(arguments.model).exists() else arguments.model.removeprefix("hub:")
    edit.save_card(arguments.output, CardInfo(base_model=base))
    neighbours = edit.provenance["making"]["neighbours"]
    say(arguments, f"{edit!r}\n{edit.prediction()}\n{_nearest(neighbours)}written to {arguments.output}")
    return {
        **model_of(arguments),
        "name": edit.name,
        "n_components": edit.n_components,
        "n_weights": edit.n_weights,
        "folder": arguments.output,
        "predicted": json.loads(json.dumps(edit.provenance["predicted"])),
        "neighbours": neighbours,
    }


def _nearest(neighbours: dict[str, dict[str, float]]) -> str:
    """The three concepts that share most of the components, as a line; nothing where that is not known."""
    shares = [f"{name} {each['components']:.0%}" for name, each in neighbours.items() if "components" in each]
    return f"shares most of its top components with {', '.join(shares[:3])}\n" if shares else ""
