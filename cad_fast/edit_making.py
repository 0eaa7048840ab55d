"""``cad-fast edit SCORES``: select components from scores, refined on the model where asked for, and save them."""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace
from typing import Any

from .attribution import Attributor, Scores
from .edits import Edit, Selection, damage_table, predicted_damage, refine
from .edits.selection import Sign
from .files import require_writable_folder
from .objectives import ConceptErasure, objective_from_config
from .pipelines import load_pipeline
from .recording.data import Recording
from .recording.record import record


def run_edit(arguments: argparse.Namespace) -> dict[str, Any]:
    """Select components from scores and save them as an edit."""
    require_writable_folder(arguments.output)
    scores = Scores.load(arguments.scores)
    selection = Selection(
        arguments.ratio,
        count=arguments.count,
        scope=arguments.scope,
        keep=[Scores.load(path) for path in arguments.keep],
        keep_weight=arguments.keep_weight,
        sensitivity=[Scores.load(path) for path in arguments.sensitivity],
        exponent=arguments.exponent,
        compat=arguments.compat,
    )
    if arguments.refine is not None:
        pipeline = _pipeline_of(arguments, scores)
        if selection.keep and not selection.sensitivity and selection.exponent > 0:
            sensitivity = [_sensitivity(arguments, pipeline, kept) for kept in selection.keep]
            selection = replace(selection, sensitivity=sensitivity)
        scores = _refined(arguments, pipeline, scores, selection)
    sign: Sign = "positive" if arguments.verb == "erase" else "negative"
    edit = Edit.from_scores(scores, selection, sign=sign, name=arguments.name)
    others = [Scores.load(path) for path in arguments.predict]
    damages = predicted_damage(edit, {other.concept: other for other in [scores, *others]}) if others else {}
    edit.save_pretrained(arguments.output)
    if not arguments.json:
        print(f"{edit!r}\nwritten to {arguments.output}")
        if damages:
            print(f"predicted change of J:\n{damage_table(damages)}")
    return {
        "name": edit.name,
        "n_components": edit.n_components,
        "n_weights": edit.n_weights,
        "folder": arguments.output,
        **({"predicted": {name: damage.to_dict() for name, damage in damages.items()}} if damages else {}),
    }


def _pipeline_of(arguments: argparse.Namespace, scores: Scores) -> Any:
    """The model that the scores are to be refined on. Raises ValueError for scores that cannot be."""
    if arguments.compat is not None:
        raise ValueError("--refine does not go with --compat: the published rule takes first-order scores")
    if arguments.samples < 1:
        raise ValueError(f"--samples is {arguments.samples}, expected at least 1")
    objective = scores.provenance["objective"]
    if objective["name"] != ConceptErasure.name or objective["base"] != "unconditional":
        raise ValueError("--refine takes scores of the erasure objective against the unconditional output")
    return load_pipeline(arguments.refine)


def _recorded(arguments: argparse.Namespace, pipeline: Any, scores: Scores) -> Recording:
    """Fresh samples of the prompts that the scores were made with."""
    made = scores.provenance
    return record(
        pipeline,
        list(itertools.islice(itertools.cycle(made["prompts"]), arguments.samples)),
        seeds=made["seeds"][0],
        num_inference_steps=made["num_inference_steps"],
        guidance_scale=made["guidance_scale"],
        progress=not arguments.quiet,
    )


def _sensitivity(arguments: argparse.Namespace, pipeline: Any, kept: Scores) -> Scores:
    """How far each component's removal moves the outputs on a concept to keep, in the window of its scores."""
    objective = objective_from_config(kept.provenance["objective"])
    attributor = Attributor(pipeline, objective, kept.space, method="sensitivity")
    recording = _recorded(arguments, pipeline, kept)
    return attributor.run(recording, concept=kept.concept, progress=not arguments.quiet)


def _refined(arguments: argparse.Namespace, pipeline: Any, scores: Scores, selection: Selection) -> Scores:
    """The scores refined for the objective they are of."""
    made = scores.provenance["objective"]
    return refine(
        pipeline,
        _recorded(arguments, pipeline, scores),
        scores,
        selection,
        sign="positive" if arguments.verb == "erase" else "negative",
        objective=objective_from_config({**made, "negative_guidance": arguments.negative_guidance}),
        rounds=arguments.rounds,
        progress=not arguments.quiet,
    )
