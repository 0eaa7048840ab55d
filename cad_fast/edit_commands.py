"""``cad-fast edit inspect | diff | verify | export``: what is in edits, and edits as files of other formats."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal

from .edits import Edit
from .edits.files.checkpoints import export_checkpoint
from .edits.files.describe import clean, describe, describe_text, difference
from .edits.files.peft import export_peft
from .evaluation import compare, evaluate
from .pipelines import load_pipeline


def run_edit_inspect(arguments: argparse.Namespace) -> dict[str, Any]:
    """What is in each edit."""
    edits = {folder: Edit.from_pretrained(folder) for folder in arguments.folders}
    if not arguments.json:
        print("\n\n".join(f"{folder}\n{describe_text(edit)}" for folder, edit in edits.items()))
    return {"edits": {folder: describe(edit) for folder, edit in edits.items()}}


def run_edit_diff(arguments: argparse.Namespace) -> dict[str, Any]:
    """Shared and own components of two edits."""
    first, second = (Edit.from_pretrained(folder) for folder in arguments.folders)
    found = difference(first, second)
    if not arguments.json:
        print("\n".join(_diff_lines(found)))
    return found


def _diff_lines(found: dict[str, Any]) -> list[str]:
    lines = [
        f"{found['first']} and {found['second']}, by {found['compared_as']}: {found['shared']} shared, "
        f"{found['only_first']} and {found['only_second']} of one only, Jaccard {found['jaccard']:.3f}"
    ]
    if found["factors"][0] != found["factors"][1]:
        lines.append(f"factors: {found['factors'][0]:g} and {found['factors'][1]:g}")
    if found["models_differ"]:
        lines.append(f"they are of different models: {found['models_differ']}")
    width = max(len(module) for module in found["modules"])
    for module, entry in found["modules"].items():
        numbers = f"{entry['shared']:>8} shared {entry['only_first']:>8} {entry['only_second']:>8} of one only"
        lines.append(f"  {module:<{width}} {numbers}  Jaccard {entry['jaccard']:.3f}")
    return lines


def run_edit_verify(arguments: argparse.Namespace) -> dict[str, Any]:
    """Whether each edit is whole and unchanged, fits the model, and does what its evaluation says."""
    if arguments.evaluate and arguments.model is None:
        raise ValueError("--evaluate needs --model")
    pipeline = load_pipeline(arguments.model).to(arguments.device) if arguments.model is not None else None
    results: dict[str, Any] = {}
    for folder in arguments.folders:
        results[folder] = result = {"ok": True}
        try:
            edit = Edit.from_pretrained(folder, pipeline)
            if pipeline is not None:
                edit.space.modules(pipeline)
            result |= {"name": edit.name, "digest": edit.digest(), "model_checked": pipeline is not None}
            if arguments.evaluate:
                result["evaluation"] = _evaluate_again(arguments, pipeline, edit)
        except (ValueError, OSError) as error:
            result |= {"ok": False, "error": str(error)}
        if not arguments.json:
            print(f"{folder}: {_verdict(result)}")
    return {"edits": results, "failed": sum(not result["ok"] for result in results.values())}


def _verdict(result: dict[str, Any]) -> str:
    if not result["ok"]:
        return f"FAILED: {clean(result['error'], 500)}"
    checked = "whole and unchanged" + (", fits the model" if result["model_checked"] else "")
    if "evaluation" not in result:
        return checked
    again = result["evaluation"]
    same = "every figure as recorded" if again["identical"] else "within the recorded interval"
    return f"{checked}, evaluated again: target {again['target_before']:.0%} to {again['target_after']:.0%}, {same}"


def _evaluate_again(arguments: argparse.Namespace, pipeline: Any, edit: Edit) -> dict[str, Any]:
    """Make the recorded evaluation anew.

    Raises ValueError when none is recorded that can be repeated, or the target's accuracy lies outside its interval.
    """
    from .commands import evaluation_prompts, scorer_of

    recorded = edit.provenance.get("evaluation")
    settings = recorded.get("settings") if isinstance(recorded, dict) else None
    if not isinstance(recorded, dict) or not isinstance(settings, dict):
        raise ValueError("it holds no evaluation with its settings: `cad-fast evaluate --card` writes one")
    run, strength, targets, (low, high) = _settings(recorded, settings)
    prompts = evaluation_prompts(arguments)
    scorer = scorer_of(arguments, prompts)
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
    recorded: dict[str, Any], settings: dict[str, Any]
) -> tuple[dict[str, Any], float, list[str], tuple[float, float]]:
    """What a recorded evaluation says of its run, checked, for it comes with the edit. Raises ValueError."""

    def number(value: Any, what: str, low: float, high: float) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"its evaluation has {what} {value!r:.80}, expected {low:g} to {high:g}")
        return value

    targets, target = recorded.get("targets"), recorded.get("target")
    if not isinstance(targets, list) or not targets or not all(isinstance(name, str) for name in targets):
        raise ValueError("its evaluation names no targets")
    interval = target.get("after_interval") if isinstance(target, dict) else None
    if not isinstance(interval, list) or len(interval) != 2:
        raise ValueError("its evaluation has no interval for the target")
    if settings.get("pipeline_kwargs"):
        raise ValueError("its evaluation was made with further arguments of the pipeline: repeat it by hand")
    run: dict[str, Any] = {
        "per_concept": int(number(settings.get("per_concept"), "per_concept", 1, 4096)),
        "seed": int(number(settings.get("seed"), "seed", -(2**62), 2**62)),
    }
    if (steps := settings.get("num_inference_steps")) is not None:
        run["num_inference_steps"] = int(number(steps, "num_inference_steps", 1, 1000))
    if (guidance := settings.get("guidance_scale")) is not None:
        run["guidance_scale"] = float(number(guidance, "guidance_scale", 0, 1000))
    low, high = (number(side, "an interval with", 0, 1) for side in interval)
    return run, number(settings.get("strength"), "strength", -100, 100), targets, (low, high)


def run_edit_export(arguments: argparse.Namespace) -> dict[str, Any]:
    """An edit as a PEFT adapter, or the edited model as a checkpoint."""
    if arguments.whole_pipeline and arguments.to != "checkpoint":
        raise ValueError("--whole-pipeline goes with --to checkpoint")
    pipeline = load_pipeline(arguments.model)
    edit = Edit.from_pretrained(arguments.folder, pipeline)
    if arguments.to == "peft":
        export_peft(edit, pipeline, arguments.output, strength=arguments.strength)
    else:
        what: Literal["denoiser", "pipeline"] = "pipeline" if arguments.whole_pipeline else "denoiser"
        export_checkpoint(edit, pipeline, arguments.output, strength=arguments.strength, what=what)
    files = {
        str(path.relative_to(arguments.output)): path.stat().st_size
        for path in sorted(Path(arguments.output).rglob("*"))
        if path.is_file()
    }
    if not arguments.json:
        print(f"{edit!r} at strength {arguments.strength:g}\nwritten to {arguments.output}")
    return {"name": edit.name, "to": arguments.to, "folder": arguments.output, "files": files}
