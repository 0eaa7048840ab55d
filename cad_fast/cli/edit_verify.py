"""``cad-fast edit verify``: check that edits are whole, unchanged, of this model, and do what is recorded of them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..diffusion.generation import Generation
from .common import (
    MODEL_HELP,
    add_loading,
    evaluation_prompts,
    load,
    model_of,
    refuse_loading,
    say,
    zoo_generation,
)
from .judges import one_judge_of

if TYPE_CHECKING:
    from ..edits import Edit

DIGEST_COVERS = "weights and factor, not name, fingerprint and provenance"
HELP = "check edits: whole, unchanged, and made for this model; exit code 1 when one fails"
EXAMPLE = "cad-fast edit verify edits/* --model zoo:emoji"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The edits, the model, and whether to repeat their evaluations."""
    parser.description = (
        f"{HELP}. The digest covers what decides which weights change and by how much: kind, factor, and every "
        "module's name, shape and components. It does not cover the name, the model's fingerprint or the provenance, "
        "and it is no signature: whoever changes an edit can make a new one."
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="folder or Hub repository of an edit")
    parser.add_argument("--model", help=f"check that they fit it: {MODEL_HELP}")
    add_loading(parser)
    parser.add_argument(
        "--evaluate", action="store_true", help="repeat the evaluation in the edit on --model and compare the figures"
    )
    parser.add_argument("--concepts", help="with --evaluate: as for `cad-fast evaluate`")
    parser.add_argument("--scorer", help="with --evaluate: clip:MODEL or zoo, what judged the recorded one")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Whether each edit is whole and unchanged, fits the model, and does what its evaluation says."""
    from ..edits import Edit

    if arguments.model is None:
        refuse_loading(arguments, "--model")
        if arguments.evaluate:
            raise ValueError("--evaluate needs --model")
    pipeline = load(arguments) if arguments.model is not None else None
    results: dict[str, Any] = {}
    for folder in arguments.folders:
        result: dict[str, Any] = {"ok": True}
        results[folder] = result
        try:
            edit = Edit.from_pretrained(folder, pipeline)
            if pipeline is not None:
                edit.space.modules(pipeline)
            result |= {"name": edit.name, "digest": edit.digest(), "model_checked": pipeline is not None}
            if arguments.evaluate:
                result["evaluation"] = _evaluate_again(arguments, pipeline, edit)
        except (ValueError, OSError) as error:
            result |= {"ok": False, "error": str(error)}
        say(arguments, f"{folder}: {_verdict(result)}")
    failed = sum(not result["ok"] for result in results.values())
    return {**({} if pipeline is None else model_of(arguments)), "edits": results, "failed": failed}


def _verdict(result: dict[str, Any]) -> str:
    from ..edits.files.describe import clean

    if not result["ok"]:
        return f"FAILED: {clean(result['error'], 500)}"
    checked = "whole and unchanged" + (", fits the model" if result["model_checked"] else "")
    checked += f" (the digest covers {DIGEST_COVERS})"
    if "evaluation" not in result:
        return checked
    again = result["evaluation"]
    same = "every figure as recorded" if again["identical"] else "within the recorded interval"
    return f"{checked}, evaluated again: target {again['target_before']:.0%} to {again['target_after']:.0%}, {same}"


def _evaluate_again(arguments: argparse.Namespace, pipeline: Any, edit: Edit) -> dict[str, Any]:
    """Make the recorded evaluation anew.

    Raises ValueError when none is recorded that can be repeated, or the target's accuracy lies outside its interval.
    """
    from ..evaluation import compare, evaluate

    recorded = edit.provenance.get("evaluation")
    settings = recorded.get("settings") if isinstance(recorded, dict) else None
    if not isinstance(recorded, dict) or not isinstance(settings, dict):
        raise ValueError("it holds no evaluation with its settings: `cad-fast evaluate --card` writes one")
    run, strength, targets, (low, high) = _settings(recorded, settings, arguments.model)
    prompts = evaluation_prompts(arguments)
    scorer = one_judge_of(arguments, prompts)
    run["progress"] = not arguments.quiet
    before = evaluate(pipeline, prompts, scorer, **run)
    after = evaluate(pipeline, prompts, scorer, edit=edit, strength=strength, **run)
    comparison = compare(before, after, targets)
    if not low <= comparison.target.after <= high:
        raise ValueError(
            f"its target is recognised in {comparison.target.after:.0%} of the pictures after the edit, recorded is "
            f"{low:.0%} to {high:.0%}"
        )
    again = comparison.to_dict()
    identical = all(again[key] == recorded.get(key) for key in ("target", "others", "concepts", "axes"))
    return {
        "target_before": comparison.target.before,
        "target_after": comparison.target.after,
        "identical": identical,
    }


def _settings(
    recorded: dict[str, Any], settings: dict[str, Any], model: str
) -> tuple[dict[str, Any], float, list[str], tuple[float, float]]:
    """What a recorded evaluation says of its run, checked, for it comes with the edit. Raises ValueError."""

    def number(value: Any, name: str, low: float, high: float) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"its evaluation has {name} {value!r:.80}, expected {low:g} to {high:g}")
        return value

    targets, target = recorded.get("targets"), recorded.get("target")
    if not isinstance(targets, list) or not targets or not all(isinstance(name, str) for name in targets):
        raise ValueError("its evaluation names no targets")
    interval = target.get("after_interval") if isinstance(target, dict) else None
    if not isinstance(interval, list) or len(interval) != 2:
        raise ValueError("its evaluation has no interval for the target")
    run: dict[str, Any] = {
        "per_concept": int(number(settings.get("per_concept"), "per_concept", 1, 4096)),
        "seed": int(number(settings.get("seed"), "seed", -(2**62), 2**62)),
    }
    for field, low, high in (("num_inference_steps", 1, 1000), ("guidance_scale", 0, 1000)):
        if (value := settings.get(field)) is not None:
            number(value, field, low, high)
    try:
        run["generation"] = Generation.from_dict(settings)
    except ValueError as error:
        raise ValueError(f"its evaluation does not say how its pictures were made: {error}") from error
    if dict(run["generation"].arguments) not in ({}, dict(zoo_generation(model).arguments)):
        raise ValueError("its evaluation was made with further arguments of the pipeline: repeat it by hand")
    lowest, highest = (number(side, "an interval with", 0, 1) for side in interval)
    return run, number(settings.get("strength"), "strength", -100, 100), targets, (lowest, highest)
