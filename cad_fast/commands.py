"""What each command of ``cad-fast`` does; every function returns its result as JSON-able values."""

from __future__ import annotations

import argparse
import io
import itertools
from pathlib import Path
from typing import Any

from PIL import Image

from . import zoo
from .attribution import Attributor, StopWhen
from .attribution.compare import compare_estimators
from .attribution.trust import trust_lines
from .components import ComponentSpace
from .denoiser_hooks import generators, plain_tensors, silent
from .edit_commands import run_edit_diff, run_edit_export, run_edit_inspect, run_edit_verify
from .edit_making import run_edit
from .edits import Edit
from .evaluation import PromptSet, compare, cost_plot, emoji_prompts, evaluate
from .evaluation.scorers import ClipScorer, Scorer
from .evaluation.sheets import before_after_sheet, contact_sheet
from .extras import require
from .files import require_writable_folder, write_bytes, write_json
from .objectives import ConceptErasure, DenoisingLoss, Objective
from .pipelines import load_pipeline
from .recording import Recording, record, record_images, renoise, with_base

# `cad_fast.cli` finds every command here.
__all__ = ["run_edit", "run_edit_diff", "run_edit_export", "run_edit_inspect", "run_edit_verify"]


def run_attribute(arguments: argparse.Namespace) -> dict[str, Any]:
    """Record, score, and save the scores."""
    output = require_writable_folder(arguments.output)
    prompts = _prompts(arguments)
    pipeline = load_pipeline(arguments.model).to(arguments.device)
    objective = _objective(arguments)
    if arguments.compare:
        return _compare_estimators(arguments, pipeline, objective, prompts, output)
    attributor = Attributor(
        pipeline,
        objective,
        kind=arguments.kind,
        target_modules=target_modules(arguments.target_modules),
        method=arguments.method,
        **_estimator_options(arguments),
    )
    recording = _record(arguments, pipeline, prompts)
    scores = attributor.run(
        recording,
        concept=arguments.concept or prompts[0],
        rows_per_pass=arguments.rows_per_pass,
        holdout=arguments.holdout,
        stop_when=_stop_when(arguments),
        output_dir=output,
        resume=arguments.resume,
        progress=not arguments.quiet,
    )
    cost = scores.provenance["cost"]
    _say(
        arguments,
        f"{scores!r}\n"
        f"cost: {cost['recorded_denoiser_calls']} denoiser calls to record, {cost['forward_passes']} "
        f"forward and {cost['backward_passes']} backward passes of up to {cost['rows_per_pass']} rows, "
        f"{cost['seconds']} s\n"
        + "".join(f"{line}\n" for line in trust_lines(scores))
        + "".join(f"  {value:+.3e}  {name}\n" for name, value in scores.top(5))
        + f"written to {output / 'scores.safetensors'}",
    )
    return {
        "scores": str(output / "scores.safetensors"),
        "n": scores.space.n,
        "cost": cost,
        "trust": scores.trust,
        "top": scores.top(10),
    }


def _compare_estimators(
    arguments: argparse.Namespace, pipeline: Any, objective: Objective, prompts: list[str], output: Path
) -> dict[str, Any]:
    """Every estimator on the same recording: a table, ``compare.json`` and ``compare.png``."""
    require("matplotlib", "report")
    space = ComponentSpace.of(pipeline, arguments.kind, target_modules(arguments.target_modules))
    points = compare_estimators(
        pipeline,
        _record(arguments, pipeline, prompts),
        objective,
        space,
        holdout=arguments.holdout or 120,
        progress=not arguments.quiet,
    )
    write_json(output / "compare.json", {"points": points})
    write_bytes(output / "compare.png", cost_plot(points))
    lines = [
        f"{point['r']:+.2f} [{point['interval'][0]:+.2f}, {point['interval'][1]:+.2f}]  "
        f"{point['row_evaluations']:>9} rows {point['seconds']:>8.1f} s  {point['method']}"
        for point in points
    ]
    _say(arguments, "\n".join([*lines, f"written to {output}"]))
    return {"points": points}


def _estimator_options(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.partitions is None:
        return {}
    if arguments.method != "ablated_gradient":
        raise ValueError("--partitions goes with --method ablated_gradient")
    return {"partitions": arguments.partitions}


def _stop_when(arguments: argparse.Namespace) -> StopWhen | None:
    given = {"r": arguments.stop_at_r, "seconds": arguments.stop_after}
    given = {key: value for key, value in given.items() if value is not None}
    return StopWhen(**given) if given else None


def _prompts(arguments: argparse.Namespace) -> list[str]:
    if arguments.samples < 1:
        raise ValueError(f"--samples is {arguments.samples}, expected at least 1")
    if arguments.concept is not None and not arguments.model.startswith("zoo:"):
        raise ValueError("--concept names a concept of a zoo model; for other models give --prompt")
    prompts = zoo.prompts(arguments.concept) if arguments.concept is not None else arguments.prompt
    return list(itertools.islice(itertools.cycle(prompts), arguments.samples))


def _objective(arguments: argparse.Namespace) -> Objective:
    window = tuple(arguments.timesteps) if arguments.timesteps else None
    if arguments.objective == "denoising":
        if arguments.base_prompt is not None:
            raise ValueError("--base-prompt goes with --objective erasure")
        return DenoisingLoss(timesteps=window)
    if arguments.images is not None:
        raise ValueError("--images goes with --objective denoising")
    return ConceptErasure(base="unconditional" if arguments.base_prompt is None else "base", timesteps=window)


def target_modules(value: str | None) -> str | list[str] | None:
    """What ``--target-modules`` names: a preset or pattern, or a list where there are commas."""
    return value.split(",") if value is not None and "," in value else value


def _record(arguments: argparse.Namespace, pipeline: Any, prompts: list[str]) -> Recording:
    progress = not arguments.quiet
    if arguments.images is not None:
        if arguments.concept is None and len(arguments.prompt) > 1:
            raise ValueError("with --images give one --prompt: the caption of all the pictures")
        pictures, captions = _real_pictures(arguments)
        return record_images(pipeline, pictures, captions, timesteps=arguments.steps, seed=arguments.seed)
    recording = record(
        pipeline,
        prompts,
        seeds=arguments.seed,
        num_inference_steps=arguments.steps,
        guidance_scale=arguments.guidance_scale,
        progress=progress,
    )
    if arguments.objective == "denoising":
        return renoise(recording, pipeline, timesteps=arguments.steps, seed=arguments.seed)
    if arguments.base_prompt is not None:
        return with_base(recording, pipeline, arguments.base_prompt, progress=progress)
    return recording


def _real_pictures(arguments: argparse.Namespace) -> tuple[Any, Any]:
    if arguments.images != "zoo":
        return arguments.images, arguments.prompt[0] if arguments.prompt else zoo.prompts(arguments.concept)[0]
    if arguments.concept is None:
        raise ValueError("--images zoo needs --concept")
    files, captions = zip(*zoo.pictures(arguments.concept), strict=True)
    return [Image.open(file).convert("RGB") for file in files], list(captions)


def run_generate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Draw every prompt on the same seeds, once per strength, and a contact sheet of all."""
    output = require_writable_folder(arguments.output)
    if arguments.images_per_prompt < 1:
        raise ValueError(f"--images-per-prompt is {arguments.images_per_prompt}, expected at least 1")
    if arguments.strength is not None and arguments.edit is None:
        raise ValueError("--strength needs --edit")
    pipeline = load_pipeline(arguments.model).to(arguments.device)
    edit = Edit.from_pretrained(arguments.edit, pipeline) if arguments.edit is not None else None
    strengths = arguments.strength or ([0.0, 1.0] if edit else [0.0])
    seeds = list(range(arguments.seed, arguments.seed + arguments.images_per_prompt))
    rows, labels, files = [], [], []
    for prompt_number, prompt in enumerate(arguments.prompt):
        for strength in strengths:
            images = _draw(pipeline, prompt, seeds, arguments, edit, strength)
            rows.append(images)
            labels.append(prompt if edit is None else f"{prompt}, strength {strength:g}")
            for seed, image in zip(seeds, images, strict=True):
                name = f"{prompt_number:02d}_seed{seed}" + ("" if edit is None else f"_{edit.name}_{strength:g}")
                files.append(str(write_png(output / f"{name}.png", image)))
    sheet = write_png(output / "sheet.png", contact_sheet(rows, labels, [f"seed {seed}" for seed in seeds]))
    _say(arguments, f"{len(files)} pictures and {sheet}")
    return {"pictures": files, "sheet": str(sheet)}


def _draw(
    pipeline: Any, prompt: str, seeds: list[int], arguments: argparse.Namespace, edit: Edit | None, strength: float
) -> list[Image.Image]:
    def draw() -> list[Image.Image]:
        with plain_tensors(), silent(pipeline):
            return pipeline(
                prompt=[prompt] * len(seeds),
                generator=generators(seeds),
                num_inference_steps=arguments.steps,
                guidance_scale=arguments.guidance_scale,
            ).images

    if edit is None:
        return draw()
    with edit.applied(pipeline, strength):
        return draw()


def write_png(path: Path, image: Image.Image) -> Path:
    """Write ``image`` as PNG, whole or not at all."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return write_bytes(path, buffer.getvalue())


def run_dial(arguments: argparse.Namespace) -> dict[str, Any]:
    """A strip over strengths."""
    from .dial import run_dial as run

    return run(arguments)


def run_budget(arguments: argparse.Namespace) -> dict[str, Any]:
    """The least damaging edit within a budget."""
    from .edit_search import run_budget as run

    return run(arguments)


def run_evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Accuracy of every concept, before and, with an edit, after it."""
    output = require_writable_folder(arguments.output) if arguments.output is not None else None
    prompts = evaluation_prompts(arguments)
    if arguments.card and (arguments.edit is None or not Path(arguments.edit).is_dir()):
        raise ValueError("--card needs --edit with the folder of an edit, which it writes to")
    if arguments.edit is not None and arguments.target is None:
        raise ValueError("--edit needs --target, the concept that the edit is about")
    if arguments.target is not None:
        prompts.of(prompts.axes[0], arguments.target)
    pipeline = load_pipeline(arguments.model).to(arguments.device)
    scorer = scorer_of(arguments, prompts)
    settings: dict[str, Any] = {
        "per_concept": arguments.per_concept,
        "seed": arguments.seed,
        "num_inference_steps": arguments.steps,
        "guidance_scale": arguments.guidance_scale,
        "keep_images": output is not None or arguments.card,
        "progress": not arguments.quiet,
    }
    edit = Edit.from_pretrained(arguments.edit, pipeline) if arguments.edit is not None else None
    before = evaluate(pipeline, prompts, scorer, **settings)
    result: dict[str, Any] = {"before": before.summary()}
    if edit is None:
        _say(arguments, "\n".join(_summary_lines(before)))
    else:
        after = evaluate(pipeline, prompts, scorer, edit=edit, strength=arguments.strength, **settings)
        comparison = compare(before, after, arguments.target)
        result |= {"after": after.summary(), "comparison": comparison.to_dict()}
        _say(arguments, comparison.table())
        if before.images is not None:
            sheet = before_after_sheet(before, after, target=arguments.target)
        if output is not None:
            write_png(output / "before_after.png", sheet)
            after.save(output / "after.json")
        if arguments.card:
            base = None if Path(arguments.model).exists() else arguments.model  # a folder here means nothing elsewhere
            edit.save_pretrained(
                arguments.edit, card=True, comparison=comparison, evaluation=after, sheet=sheet, base_model=base
            )
            _say(arguments, f"figures and model card written to {arguments.edit}")
    if output is not None:
        before.save(output / "before.json")
        write_json(output / "evaluation.json", result)
        _say(arguments, f"written to {output}")
    return result


def evaluation_prompts(arguments: argparse.Namespace) -> PromptSet:
    """Those of ``--concepts``, or of the zoo's model."""
    if arguments.concepts is not None:
        return PromptSet.from_json(arguments.concepts)
    if arguments.model.startswith("zoo:"):
        return emoji_prompts()
    raise ValueError("--concepts is needed: a JSON file with the concepts of this model and their prompts")


def scorer_of(arguments: argparse.Namespace, prompts: PromptSet) -> Scorer:
    """That of ``--scorer``, or the zoo's."""
    if arguments.scorer is None:
        if arguments.model.startswith("zoo:"):
            return zoo.scorer()
        raise ValueError("--scorer is needed, such as clip:openai/clip-vit-base-patch32")
    kind, _, model = arguments.scorer.partition(":")
    if kind != "clip" or not model:
        raise ValueError(f"--scorer is {arguments.scorer!r}, expected clip:MODEL")
    axes = {
        axis: {label: prompts.of(axis, label)[0].prompt for label in prompts.concepts(axis)} for axis in prompts.axes
    }
    return ClipScorer(model, axes, device=arguments.device)


def _summary_lines(evaluation: Any) -> list[str]:
    lines = []
    for concept in evaluation.concepts:
        tally = evaluation.tally(concept)
        low, high = tally.interval
        lines.append(f"{concept:<12} {100 * tally.accuracy:5.1f}%  [{100 * low:.0f}, {100 * high:.0f}]  n={tally.n}")
    return lines


def run_serve(arguments: argparse.Namespace) -> dict[str, Any]:
    """Serve until the process is asked to end."""
    from .serving.command import run

    return run(arguments)


def run_demo(arguments: argparse.Namespace) -> dict[str, Any]:
    """The whole path on the embedded model, with a report."""
    from .demo import run_demo as run

    return run(arguments.output, per_concept=arguments.per_concept, progress=not arguments.quiet, quiet=arguments.json)


def run_env(arguments: argparse.Namespace) -> dict[str, Any]:
    """Versions and backends."""
    from .attribution.attributor import versions
    from .ops import backend_report

    report = {"versions": versions(), "backends": backend_report()}
    _say(arguments, _indented(report))
    return report


def _indented(value: Any, depth: int = 0) -> str:
    if not isinstance(value, dict):
        return str(value)
    lines = []
    for key, entry in value.items():
        nested = isinstance(entry, dict) and entry
        lines.append("  " * depth + f"{key}:" + (f"\n{_indented(entry, depth + 1)}" if nested else f" {entry}"))
    return "\n".join(lines)


def _say(arguments: argparse.Namespace, text: str) -> None:
    if not arguments.json:
        print(text)
