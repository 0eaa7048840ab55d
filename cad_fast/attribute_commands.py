"""``cad-fast attribute``: from the command line to scores, of one concept or of many."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

from PIL import Image

from . import zoo
from .attribution import METHODS, Attributor, Scores, StopWhen
from .attribution.compare import compare_estimators
from .attribution.methods.ablated_gradient import AblatedGradient
from .attribution.methods.base import Method
from .attribution.methods.registry import default_method
from .attribution.trust import trust_lines
from .components.space import ComponentSpace
from .edits import overlap
from .evaluation import PromptSet
from .extras import require
from .files import require_writable_folder, write_bytes, write_json
from .objectives import ConceptErasure, DenoisingLoss, Objective
from .pipelines import load_pipeline
from .recording.data import Recording
from .recording.record import record, with_base
from .recording.renoise import record_images, renoise
from .report import cost_plot, overlap_plot

# Options of the methods, and what else only some of them have.
_OPTIONS: dict[str, tuple[Method, ...]] = {
    "partitions": ("ablated_gradient",),
    "fraction": ("ablated_gradient", "second_order", "regression"),
    "ablations": ("regression",),
    "solver": ("regression",),
    "draw": ("regression",),
}
_GOES_WITH: dict[str, tuple[Method, ...]] = {
    **_OPTIONS,
    "stop_at_r": ("ablated_gradient", "regression"),
    "stop_after": ("ablated_gradient", "regression"),
    "executor": ("regression", "exact"),
    "holdout": tuple(method for method in METHODS if method != "sensitivity"),
}
# What --compare, which runs every method with options of its own, leaves to be said.
_COMPARED = ("fraction", "holdout")
# Of the top components that two concepts are compared by, as in docs/attribution.md.
OVERLAP_RATIO = 0.03
MOST_PLOTTED = 60


def run_attribute(arguments: argparse.Namespace) -> dict[str, Any]:
    """Record, score, and save the scores."""
    options = _estimator_options(arguments)
    concepts = _concepts(arguments)
    output = require_writable_folder(arguments.output)
    prompts = {name: _prompts(one) for name, one in concepts.items()}
    pipeline = load_pipeline(arguments.model).to(arguments.device)
    objective = _objective(arguments)
    if arguments.compare:
        return _compare_estimators(next(iter(concepts.values())), pipeline, objective, output)
    attributor = Attributor(
        pipeline,
        objective,
        kind=arguments.kind,
        target_modules=target_modules(arguments.target_modules),
        method=_method(arguments) if options else arguments.method,
        **options,
    )
    recordings = {name: _record(one, pipeline, prompts[name]) for name, one in concepts.items()}
    run: dict[str, Any] = {
        "rows_per_pass": arguments.rows_per_pass,
        "holdout": arguments.holdout,
        "stop_when": _stop_when(arguments),
        "output_dir": output,
        "resume": arguments.resume,
        "progress": not arguments.quiet,
        "executor": arguments.executor or "local",
        "workers": arguments.workers,
    }
    if len(concepts) > 1:
        return _many(arguments, attributor.run_many(recordings, **run), output)
    ((concept, recording),) = recordings.items()
    return _one(arguments, attributor.run(recording, concept=concept, **run), output)


def _one(arguments: argparse.Namespace, scores: Scores, output: Path) -> dict[str, Any]:
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


def _many(arguments: argparse.Namespace, found: dict[str, Scores], output: Path) -> dict[str, Any]:
    """What each concept's scores say of themselves, and which of their top components two concepts share."""
    first = next(iter(found.values()))
    lines = [f"{len(found)} concepts, {first.provenance['method']}, {first.space.n} of kind {first.space.kind}"]
    for name, scores in found.items():
        cost = scores.provenance["cost"]
        passes = f"{cost['forward_passes']} forward and {cost['backward_passes']} backward passes, {cost['seconds']} s"
        lines += [f"{name}: {output / name}", f"  {passes}{' for all' if 'shared_by_concepts' in cost else ''}"]
        lines += [f"  {line}" for line in trust_lines(scores)]
    concepts = {
        name: {
            "scores": str(output / name),
            "cost": scores.provenance["cost"],
            "trust": scores.trust,
            "stop_when": scores.provenance.get("stop_when"),
            "top": scores.top(10),
        }
        for name, scores in found.items()
    }
    shared = _overlap(found, output, lines)
    _say(arguments, "\n".join([*lines, f"written to {output}"]))
    return {"concepts": concepts, "n": first.space.n, "overlap": shared}


def _overlap(found: dict[str, Scores], output: Path, lines: list[str]) -> dict[str, Any] | None:
    """Writes ``overlap.json`` and, with matplotlib, ``overlap.png``; what could not be done is added to ``lines``."""
    try:
        shares = overlap(list(found.values()), OVERLAP_RATIO)
    except ValueError as error:
        lines.append(f"no overlap: {error}")
        return None
    result = {"ratio": OVERLAP_RATIO, "concepts": list(found), "shares": shares.tolist()}
    write_json(output / "overlap.json", result)
    if len(found) > MOST_PLOTTED:
        lines.append(f"no overlap.png: more than {MOST_PLOTTED} concepts")
        return result
    try:
        title = f"Components among the top {OVERLAP_RATIO:.0%} of two concepts"
        write_bytes(output / "overlap.png", overlap_plot(shares, list(found), title=title))
    except ImportError as error:
        lines.append(f"no overlap.png: {error}")
    return result


def _compare_estimators(
    arguments: argparse.Namespace, pipeline: Any, objective: Objective, output: Path
) -> dict[str, Any]:
    """Every estimator on the same recording: a table, ``compare.json`` and ``compare.png``."""
    require("matplotlib", "report")
    space = ComponentSpace.of(pipeline, arguments.kind, target_modules(arguments.target_modules))
    points = compare_estimators(
        pipeline,
        _record(arguments, pipeline, _prompts(arguments)),
        objective,
        space,
        fraction=arguments.fraction or AblatedGradient.fraction,
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


def _method(arguments: argparse.Namespace) -> Method:
    return arguments.method or default_method(arguments.kind)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _estimator_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of the method. Raises ValueError for what does not go together."""
    given = [name for name in _GOES_WITH if getattr(arguments, name) not in (None, 0, "local")]
    if arguments.compare:
        own = [name for name in ("method", "resume", "rows_per_pass") if getattr(arguments, name)]
        for name in [*own, *(name for name in given if name not in _COMPARED)]:
            raise ValueError(f"{_flag(name)} does not go with --compare, which runs every method in its own way")
        return {}
    method = _method(arguments)
    for name in given:
        if method not in _GOES_WITH[name]:
            value = " ray" if name == "executor" else ""
            fitting = " or ".join(_GOES_WITH[name])
            raise ValueError(f"{_flag(name)}{value} goes with --method {fitting}, here it is {method}")
    if arguments.workers is not None and arguments.executor != "ray":
        raise ValueError("--workers goes with --executor ray")
    return {name: getattr(arguments, name) for name in _OPTIONS if name in given}


def _concepts(arguments: argparse.Namespace) -> dict[str, argparse.Namespace]:
    """Per concept the arguments as if it alone were asked for. Raises ValueError for what does not go together."""

    def alone(concept: str | None) -> argparse.Namespace:
        return argparse.Namespace(**{**vars(arguments), "concept": concept})

    if arguments.prompt is not None:
        if arguments.concepts is not None:
            raise ValueError("--concepts is a file of prompts, it does not go with --prompt")
        return {arguments.prompt[0]: alone(None)}
    names = list(arguments.concept or ())
    if not names and arguments.concepts is not None:
        known = PromptSet.from_json(arguments.concepts)
        names = list(known.concepts(known.axes[0]))
    if not names:
        raise ValueError("--concept, --concepts or --prompt is needed: what to score the components for")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"--concept {twice[0]} is given twice")
    if len(names) > 1 and arguments.compare:
        raise ValueError(f"--compare takes one concept, got {len(names)}")
    if len(names) > 1 and arguments.images not in (None, "zoo"):
        raise ValueError(f"--images {arguments.images} is a folder for one concept, got {len(names)}")
    return {name: alone(name) for name in names}


def _stop_when(arguments: argparse.Namespace) -> StopWhen | None:
    given = {"r": arguments.stop_at_r, "seconds": arguments.stop_after}
    given = {key: value for key, value in given.items() if value is not None}
    return StopWhen(**given) if given else None


def _prompts(arguments: argparse.Namespace) -> list[str]:
    if arguments.samples < 1:
        raise ValueError(f"--samples is {arguments.samples}, expected at least 1")
    if arguments.concept is None:
        prompts = arguments.prompt
    elif arguments.concepts is not None:
        known = PromptSet.from_json(arguments.concepts)
        prompts = [entry.prompt for entry in known.of(known.axes[0], arguments.concept)]
    elif arguments.model.startswith("zoo:"):
        prompts = zoo.prompts(arguments.concept)
    else:
        raise ValueError(
            "--concept names a concept of a zoo model; for other models give --prompt, or a file by --concepts"
        )
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
        return arguments.images, _prompts(arguments)[0]
    if arguments.concept is None:
        raise ValueError("--images zoo needs --concept")
    files, captions = zip(*zoo.pictures(arguments.concept), strict=True)
    return [Image.open(file).convert("RGB") for file in files], list(captions)


def _say(arguments: argparse.Namespace, text: str) -> None:
    if not arguments.json:
        print(text)
