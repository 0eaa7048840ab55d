"""What each command of ``cad-fast`` does; every function returns its result as JSON-able values."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

from PIL import Image

from . import zoo
from .attribute_commands import run_attribute, target_modules
from .diffusion.context import generators, plain_tensors, silent
from .edit_commands import run_edit_diff, run_edit_export, run_edit_inspect, run_edit_verify
from .edit_making import run_edit
from .edits import Edit
from .evaluation import PromptSet, compare, evaluate
from .evaluation.scorers import ClipScorer, Scorer
from .files import require_writable_folder, write_bytes, write_json
from .pipelines import load_pipeline
from .report.sheets import before_after_sheet, contact_sheet
from .zoo.prompt_set import emoji_prompts

# `cad_fast.cli` finds every command here.
__all__ = [
    "run_attribute",
    "run_edit",
    "run_edit_diff",
    "run_edit_export",
    "run_edit_inspect",
    "run_edit_verify",
    "target_modules",
]


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
    from .demo.demo import run_demo as run

    return run(arguments.output, per_concept=arguments.per_concept, progress=not arguments.quiet, quiet=arguments.json)


def run_env(arguments: argparse.Namespace) -> dict[str, Any]:
    """Versions and backends."""
    from .ops import backend_report
    from .version import versions

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
