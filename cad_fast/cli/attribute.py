"""``cad-fast attribute``: from the command line to scores, of one concept or of many."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..choices import DRAWS, EXECUTORS, KINDS, METHODS, SCORE_DTYPES, SOLVERS, Method
from .common import (
    add_model,
    add_sampling,
    add_size,
    add_timesteps,
    generation_of,
    is_zoo,
    load,
    model_of,
    say,
    target_modules,
    window,
)

if TYPE_CHECKING:
    from ..attribution import StopWhen
    from ..objectives import Objective
    from ..recording.data import Recording

HELP = "score every component for a concept"
EXAMPLE = "cad-fast attribute zoo:emoji --concept cat --target-modules cross-attention-kv -o runs/cat"
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the concept, what a component is, and how scores are estimated."""
    add_model(parser)
    concepts = parser.add_mutually_exclusive_group()
    concepts.add_argument(
        "--concept",
        nargs="+",
        action="extend",
        help="a concept of a zoo model, in all its prompts; scores of several are then read as OUTPUT/CONCEPT",
    )
    concepts.add_argument("--prompt", action="append", help="a prompt that expresses the concept (repeat for more)")
    parser.add_argument(
        "--concepts",
        metavar="FILE",
        help="JSON file with concepts and their prompts, as for `cad-fast evaluate`; all, or those of --concept",
    )
    parser.add_argument("--samples", type=int, default=6, help="images to sample, spread over the prompts (default 6)")
    parser.add_argument("--target-modules", help="preset, regular expression or comma-separated names of modules")
    parser.add_argument("--kind", choices=KINDS, default="weight", help="what a component is (default weight)")
    parser.add_argument(
        "--objective",
        choices=("erasure", "denoising"),
        default="erasure",
        help="distance from the unconditional output, or minus the denoising loss (default erasure)",
    )
    parser.add_argument("--base-prompt", help="erasure: compare with this prompt instead of the unconditional output")
    parser.add_argument("--images", help="denoising: a folder of real pictures, or `zoo` (default: own samples)")
    add_timesteps(parser, "use these timesteps only")
    parser.add_argument(
        "--method",
        choices=METHODS,
        help="how to estimate (default: gradient for single weights, ablated_gradient for other kinds)",
    )
    parser.add_argument("--partitions", type=int, help="ablated_gradient: at most so many partitions (default 1)")
    parser.add_argument(
        "--fraction",
        type=float,
        help="ablated_gradient, second_order, regression: share of the components ablated (default 0.05)",
    )
    parser.add_argument("--ablations", type=int, help="regression: at most so many ablations (default 1000)")
    parser.add_argument("--solver", choices=SOLVERS, help="regression: how to fit (default ridge)")
    parser.add_argument("--draw", choices=DRAWS, help="regression: how ablations are drawn (default partitions)")
    parser.add_argument("--stop-at-r", type=float, help="ablated_gradient, regression: stop when r reaches this")
    parser.add_argument("--stop-after", type=float, metavar="SECONDS", help="stop when so long was spent")
    parser.add_argument(
        "--compare", action="store_true", help="no scores, but all estimators side by side: r against cost, and a plot"
    )
    parser.add_argument("--holdout", type=int, default=0, help="ablations to check the scores on (default 0)")
    parser.add_argument("--rows-per-pass", type=int, help="rows per pass of the denoiser (default: the method's)")
    parser.add_argument(
        "--executor", choices=EXECUTORS, help="regression, exact: who measures the ablations (default local)"
    )
    parser.add_argument("--workers", type=int, help="ray: how many workers (default: all CPUs or GPUs of the cluster)")
    parser.add_argument("--resume", action="store_true", help="go on with the unfinished run in the output folder")
    parser.add_argument(
        "--save-dtype", choices=SCORE_DTYPES, default="float32", help="of the scores in their file (default float32)"
    )
    parser.add_argument(
        "--save-top", type=int, metavar="K", help="save the K scores of largest absolute value only (default: all)"
    )
    parser.add_argument("-o", "--output", required=True, help="folder for scores.safetensors")
    add_sampling(parser)
    add_size(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Record, score, and save the scores."""
    options = _estimator_options(arguments)
    concepts = _concepts(arguments)

    from ..attribution import Attributor
    from ..files import require_writable_folder
    from .attribute_results import of_many, of_one

    output = require_writable_folder(arguments.output)
    prompts = {name: _prompts(one) for name, one in concepts.items()}
    generation_of(arguments)  # before the model is loaded: it checks what was given
    pipeline = load(arguments)
    objective = _objective(arguments)
    if arguments.compare:
        result = _compare_estimators(next(iter(concepts.values())), pipeline, objective, output)
        return {**model_of(arguments), **result}
    attributor = Attributor(
        pipeline,
        objective,
        kind=arguments.kind,
        target_modules=target_modules(arguments.target_modules),
        method=_method(arguments) if options else arguments.method,
        **options,
    )
    recordings = {name: _record(one, pipeline, prompts[name]) for name, one in concepts.items()}
    settings: dict[str, Any] = {
        "rows_per_pass": arguments.rows_per_pass,
        "holdout": arguments.holdout,
        "stop_when": _stop_when(arguments),
        "output_dir": output,
        "resume": arguments.resume,
        "progress": not arguments.quiet,
        "executor": arguments.executor or "local",
        "workers": arguments.workers,
        "save_dtype": arguments.save_dtype,
        "save_top": arguments.save_top,
    }
    if len(concepts) > 1:
        result = of_many(arguments, attributor.run_many(recordings, **settings), output)
    else:
        ((concept, recording),) = recordings.items()
        result = of_one(arguments, attributor.run(recording, concept=concept, **settings), output)
    return {**model_of(arguments), **result}


def _compare_estimators(
    arguments: argparse.Namespace, pipeline: Any, objective: Objective, output: Path
) -> dict[str, Any]:
    """Every estimator on the same recording: a table, ``compare.json`` and ``compare.png``."""
    from ..attribution.compare import compare_estimators
    from ..attribution.methods.ablated_gradient import AblatedGradient
    from ..components.space import ComponentSpace
    from ..extras import require
    from ..files import write_bytes, write_json
    from ..report import cost_plot

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
    say(arguments, "\n".join([*lines, f"written to {output}"]))
    return {"points": points}


def _method(arguments: argparse.Namespace) -> Method:
    from ..attribution.methods.registry import default_method

    return arguments.method or default_method(arguments.kind)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _estimator_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of the method. Raises ValueError for what does not go together."""
    given = [name for name in _GOES_WITH if getattr(arguments, name) not in (None, 0, "local")]
    if arguments.compare:
        refused = [name for name in ("method", "resume", "rows_per_pass") if getattr(arguments, name)]
        for name in [*refused, *(name for name in given if name not in _COMPARED)]:
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
    from ..evaluation import PromptSet

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
    from ..attribution import StopWhen

    given = {"r": arguments.stop_at_r, "seconds": arguments.stop_after}
    given = {key: value for key, value in given.items() if value is not None}
    return StopWhen(**given) if given else None


def _prompts(arguments: argparse.Namespace) -> list[str]:
    from .. import zoo
    from ..evaluation import PromptSet

    if arguments.samples < 1:
        raise ValueError(f"--samples is {arguments.samples}, expected at least 1")
    if arguments.concept is None:
        prompts = arguments.prompt
    elif arguments.concepts is not None:
        known = PromptSet.from_json(arguments.concepts)
        prompts = [entry.prompt for entry in known.of(known.axes[0], arguments.concept)]
    elif is_zoo(arguments):
        prompts = zoo.prompts(arguments.concept)
    else:
        raise ValueError(
            "--concept names a concept of a zoo model; for other models give --prompt, or a file by --concepts"
        )
    return list(itertools.islice(itertools.cycle(prompts), arguments.samples))


def _objective(arguments: argparse.Namespace) -> Objective:
    from ..objectives import ConceptErasure, DenoisingLoss

    if arguments.objective == "denoising":
        if arguments.base_prompt is not None:
            raise ValueError("--base-prompt goes with --objective erasure")
        return DenoisingLoss(timesteps=window(arguments))
    if arguments.images is not None:
        raise ValueError("--images goes with --objective denoising")
    return ConceptErasure(base=None if arguments.base_prompt is None else "base", timesteps=window(arguments))


def _record(arguments: argparse.Namespace, pipeline: Any, prompts: list[str]) -> Recording:
    from ..recording.record import record, with_base
    from ..recording.renoise import record_images, renoise

    progress = not arguments.quiet
    generation = generation_of(arguments)
    if arguments.images is not None:
        if arguments.concept is None and len(arguments.prompt) > 1:
            raise ValueError("with --images give one --prompt: the caption of all the pictures")
        pictures, captions = _real_pictures(arguments)
        if arguments.size is not None:
            raise ValueError("--size does not go with --images: pictures are brought to the pipeline's own size")
        steps, more = generation.num_inference_steps, generation.arguments
        return record_images(pipeline, pictures, captions, timesteps=steps, seed=arguments.seed, **more)
    recording = record(pipeline, prompts, seeds=arguments.seed, progress=progress, **generation.to_kwargs())
    if arguments.objective == "denoising":
        return renoise(recording, pipeline, timesteps=recording.num_inference_steps, seed=arguments.seed)
    if arguments.base_prompt is not None:
        return with_base(recording, pipeline, arguments.base_prompt, progress=progress)
    return recording


def _real_pictures(arguments: argparse.Namespace) -> tuple[Any, Any]:

    from .. import zoo

    if arguments.images != "zoo":
        return arguments.images, _prompts(arguments)[0]
    if arguments.concept is None:
        raise ValueError("--images zoo needs --concept")
    files, captions = zip(*zoo.pictures(arguments.concept), strict=True)
    return zoo.opened(files), list(captions)
