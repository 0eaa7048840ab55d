"""``cad-fast evaluate``: measure what an edit does to its target and to everything else, on the same seeds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .common import add_model, add_sampling, evaluation_prompts, generation_of, load, model_of, say, scorer_of

HELP = "measure what an edit does to its target and to everything else, on the same seeds"
EXAMPLE = "cad-fast evaluate zoo:emoji --edit edits/no-cat --target cat -o evaluation"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the edit, and the concepts with what judges them."""
    add_model(parser)
    parser.add_argument("--edit", help="folder of an edit (without: the model as it is)")
    parser.add_argument("--strength", type=float, default=1.0, help="default 1")
    parser.add_argument("--target", help="the concept that the edit is about")
    parser.add_argument(
        "--concepts", help="JSON file with concepts and their prompts (default: those of the zoo model)"
    )
    parser.add_argument(
        "--scorer", help="clip:MODEL, zero-shot scoring of the concepts (default: the zoo's classifier)"
    )
    parser.add_argument("--per-concept", type=int, default=16, help="images per concept (default 16)")
    parser.add_argument(
        "--card", action="store_true", help="write the figures into the edit's folder, with a model card and the sheet"
    )
    parser.add_argument("-o", "--output", help="folder for evaluation.json and the before/after sheet")
    add_sampling(parser, seed=1000)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Accuracy of every concept, before and, with an edit, after it."""
    from ..edits import CardInfo, Edit
    from ..evaluation import compare, evaluate
    from ..files import require_writable_folder, write_json, write_png
    from ..report.sheets import before_after_sheet

    output = require_writable_folder(arguments.output) if arguments.output is not None else None
    prompts = evaluation_prompts(arguments)
    if arguments.card and (arguments.edit is None or not Path(arguments.edit).is_dir()):
        raise ValueError("--card needs --edit with the folder of an edit, which it writes to")
    if arguments.edit is not None and arguments.target is None:
        raise ValueError("--edit needs --target, the concept that the edit is about")
    if arguments.target is not None:
        prompts.of(prompts.axes[0], arguments.target)
    pipeline = load(arguments)
    scorer = scorer_of(arguments, prompts)
    settings: dict[str, Any] = {
        "per_concept": arguments.per_concept,
        "seed": arguments.seed,
        "generation": generation_of(arguments),
        "keep_images": output is not None or arguments.card,
        "progress": not arguments.quiet,
    }
    edit = Edit.from_pretrained(arguments.edit, pipeline) if arguments.edit is not None else None
    before = evaluate(pipeline, prompts, scorer, **settings)
    result: dict[str, Any] = {**model_of(arguments), "before": before.summary()}
    if edit is None:
        say(arguments, "\n".join(_summary_lines(before)))
    else:
        after = evaluate(pipeline, prompts, scorer, edit=edit, strength=arguments.strength, **settings)
        comparison = compare(before, after, arguments.target)
        result |= {"after": after.summary(), "comparison": comparison.to_dict()}
        say(arguments, comparison.table())
        if before.images is not None:
            sheet = before_after_sheet(before, after, target=arguments.target)
        if output is not None:
            write_png(output / "before_after.png", sheet)
            after.save(output / "after.json")
        if arguments.card:
            base = None if Path(arguments.model).exists() else arguments.model  # a folder here means nothing elsewhere
            edit = edit.evaluated(comparison, after)
            edit.save_pretrained(arguments.edit)
            edit.save_card(arguments.edit, CardInfo(sheet=sheet, base_model=base))
            say(arguments, f"figures and model card written to {arguments.edit}")
    if output is not None:
        before.save(output / "before.json")
        write_json(output / "evaluation.json", result)
        say(arguments, f"written to {output}")
    return result


def _summary_lines(evaluation: Any) -> list[str]:
    lines = []
    for concept in evaluation.concepts:
        tally = evaluation.tally(concept)
        low, high = tally.interval
        lines.append(f"{concept:<12} {100 * tally.accuracy:5.1f}%  [{100 * low:.0f}, {100 * high:.0f}]  n={tally.n}")
    return lines
