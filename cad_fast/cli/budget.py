"""``cad-fast budget``: search for the edit that erases a concept and leaves so much of the others."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .common import (
    add_model,
    add_sampling,
    add_timesteps,
    evaluation_prompts,
    generation_of,
    load,
    model_of,
    say,
    target_modules,
    window,
)
from .judges import one_judge_of

HELP = "search for the edit that erases a concept and leaves so much of the others"
EXAMPLE = "cad-fast budget zoo:emoji --erase car --keep face=95 style=90 --timesteps 850 1000 -o edits/no-car"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the budget, the candidates and the pictures that judge them."""
    add_model(parser)
    parser.add_argument("--erase", required=True, metavar="CONCEPT", help="the concept to erase")
    parser.add_argument("--at-most", type=float, default=5.0, help="percent of its pictures still recognised (5)")
    parser.add_argument(
        "--keep",
        nargs="+",
        required=True,
        metavar="NAME=PERCENT",
        help="percent of the accuracy before, of a concept, of `others` or of another axis such as `style`",
    )
    parser.add_argument("--target-modules", default="cross-attention-kv", help="default cross-attention-kv")
    add_timesteps(parser, "score these timesteps only")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.01, 0.02, 0.03, 0.06], help="1, 2, 3 and 6%%")
    parser.add_argument("--strengths", type=float, nargs="+", default=[1.0], help="default 1")
    parser.add_argument("--samples", type=int, default=6, help="trajectories per concept to score (default 6)")
    parser.add_argument("--per-concept", type=int, default=8, help="pictures per concept for choosing (default 8)")
    parser.add_argument("--confirming", type=int, default=16, help="pictures per concept afterwards (default 16)")
    parser.add_argument("--concepts", help="JSON or CSV with concepts and their prompts (default: the zoo model's)")
    parser.add_argument("--scorer", help="clip:MODEL or zoo (default: the zoo's classifier)")
    parser.add_argument("--predict-only", action="store_true", help="say what each edit would do, and stop there")
    parser.add_argument("-o", "--output", required=True, help="folder for the edit, its card and sheet")
    add_sampling(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Search, save the edit with its model card, and say whether it is within the budget."""
    from ..edits import CardInfo
    from ..files import require_writable_folder, write_json
    from ..report.sheets import before_after_sheet
    from ..search.budget import Budget, shortfall_text
    from ..search.search import EditSearch, predicted_table, tried_table

    output = require_writable_folder(arguments.output)
    budget = Budget.parse(arguments.erase, arguments.keep, arguments.at_most)
    prompts = evaluation_prompts(arguments)
    budget.concepts(prompts)
    search = EditSearch.prepare(
        load(arguments),
        budget,
        prompts,
        one_judge_of(arguments, prompts),
        target_modules=target_modules(arguments.target_modules),
        timesteps=window(arguments),
        samples=arguments.samples,
        generation=generation_of(arguments),
        ratios=arguments.ratios,
        strengths=arguments.strengths,
        per_concept=arguments.per_concept,
        confirming=arguments.confirming,
        seed=arguments.seed,
        output_dir=output / "search",
        progress=not arguments.quiet,
    )
    candidates = search.candidates()
    say(arguments, f"predicted, nothing applied yet:\n{predicted_table(candidates)}")
    predicted = [{**one.settings(), "left": one.left, "moved": one.moved} for one in candidates]
    if arguments.predict_only:
        return {**model_of(arguments), "predicted": predicted}
    result = search.run(candidates)
    write_json(output / "search" / "search.json", {**result.to_dict(), "budget": budget.to_dict()})
    base = None if Path(arguments.model).exists() else arguments.model  # a folder here means nothing elsewhere
    sheet = before_after_sheet(result.before, result.after, target=budget.erase)
    edit = result.edit.evaluated(result.comparison, result.after)
    edit.save_pretrained(output)
    edit.save_card(output, CardInfo(sheet=sheet, base_model=base))
    say(arguments, f"tried on the seeds for choosing:\n{tried_table(result, budget)}")
    say(arguments, f"chosen: {result.candidate.settings()}; on fresh seeds:\n{result.comparison.table()}")
    say(arguments, f"{shortfall_text(result.missed, budget.erase)}; written to {output}")
    return {
        **model_of(arguments),
        "folder": str(output),
        "predicted": predicted,
        **result.to_dict(),
        "failed": int(not result.met),
    }
