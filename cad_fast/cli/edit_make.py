"""``cad-fast edit make``: select components from scores, refined on the model where asked for, and save them."""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..choices import SCOPES
from .common import add_loading, load, model_of, refuse_loading, say

if TYPE_CHECKING:
    from ..attribution import Scores
    from ..edits import Selection
    from ..edits.selection import Sign
    from ..recording.data import Recording

HELP = "make an edit from scores: erase or amplify a concept"
EXAMPLE = "cad-fast edit make runs/cat --erase --ratio 0.03 --keep runs/dog runs/face -o edits/no-cat"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The scores, what is selected of them, and what is kept."""
    parser.add_argument("scores", help="what `cad-fast attribute` wrote")
    verb = parser.add_mutually_exclusive_group(required=True)
    verb.add_argument("--erase", dest="verb", action="store_const", const="erase", help="remove positive components")
    verb.add_argument(
        "--amplify", dest="verb", action="store_const", const="amplify", help="remove negative components"
    )
    amount = parser.add_mutually_exclusive_group(required=True)
    amount.add_argument("--ratio", type=float, help="share of the components (of each row or tensor, by scope)")
    amount.add_argument("--count", type=int, help="number of components")
    parser.add_argument("--scope", choices=SCOPES, default="global", help="default global")
    parser.add_argument("--keep", nargs="+", default=[], metavar="SCORES", help="scores of concepts to keep")
    parser.add_argument("--keep-weight", type=float, default=0.5, help="how much they count (default 0.5)")
    parser.add_argument(
        "--sensitivity",
        nargs="+",
        default=[],
        metavar="SCORES",
        help="of concepts to keep (attribute --method sensitivity): rank by gain against damage; with --refine they "
        "are made for those of --keep",
    )
    parser.add_argument("--exponent", type=float, default=0.5, help="how much the damage counts (default 0.5; 0: not)")
    parser.add_argument("--refine", metavar="MODEL", help="refine the scores for this edit on the model they are of")
    parser.add_argument("--samples", type=int, default=12, help="refining: images to sample (default 12)")
    parser.add_argument("--rounds", type=int, default=12, help="refining: rounds (default 12)")
    parser.add_argument(
        "--negative-guidance", type=float, default=1.0, help="refining: aim this far beyond the base (default 1)"
    )
    add_loading(parser)
    parser.add_argument(
        "--predict", nargs="+", default=[], metavar="SCORES", help="print what the edit will do to these concepts"
    )
    parser.add_argument("--compat", choices=("paper",), help="the selection rule that was published with the paper")
    parser.add_argument("--name", help="the edit's name (default: concept and verb)")
    parser.add_argument("-o", "--output", required=True, help="folder for the edit")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Select components from scores and save them as an edit."""
    from ..attribution import Scores
    from ..edits import Edit, Selection, damage_table, predicted_damage
    from ..files import require_writable_folder

    if arguments.refine is None:
        refuse_loading(arguments, "--refine")
    elif arguments.compat is not None:
        raise ValueError("--refine does not go with --compat: the published rule takes first-order scores")
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
    edit = Edit.from_scores(scores, selection, sign=_sign(arguments), name=arguments.name)
    others = [Scores.load(path) for path in arguments.predict]
    damages = predicted_damage(edit, {other.concept: other for other in [scores, *others]}) if others else {}
    edit.save_pretrained(arguments.output)
    say(arguments, f"{edit!r}\nwritten to {arguments.output}")
    if damages:
        say(arguments, f"predicted change of J:\n{damage_table(damages)}")
    return {
        **({} if arguments.refine is None else model_of(arguments)),
        "name": edit.name,
        "n_components": edit.n_components,
        "n_weights": edit.n_weights,
        "folder": arguments.output,
        **({"predicted": {name: damage.to_dict() for name, damage in damages.items()}} if damages else {}),
    }


def _sign(arguments: argparse.Namespace) -> Sign:
    return "positive" if arguments.verb == "erase" else "negative"


def _pipeline_of(arguments: argparse.Namespace, scores: Scores) -> Any:
    """The model that the scores are to be refined on. Raises ValueError for scores that cannot be."""
    from ..objectives import ConceptErasure

    if arguments.samples < 1:
        raise ValueError(f"--samples is {arguments.samples}, expected at least 1")
    objective = scores.provenance["objective"]
    if objective["name"] != ConceptErasure.name:
        raise ValueError(f"--refine takes scores of the erasure objective, these are of {objective['name']}")
    if objective["base"] == "base" and "base_prompts" not in scores.provenance:
        raise ValueError("--refine: the scores do not say which base prompt they compare with; make them again")
    return load(arguments, arguments.refine)


def _recorded(arguments: argparse.Namespace, pipeline: Any, scores: Scores) -> Recording:
    """Fresh samples of the prompts that the scores were made with, and of their base prompts."""
    from ..diffusion.generation import Generation
    from ..recording.record import record, with_base

    made_with = scores.provenance

    def taking_turns(texts: list[str]) -> list[str]:
        return list(itertools.islice(itertools.cycle(texts), arguments.samples))

    recording = record(
        pipeline,
        taking_turns(made_with["prompts"]),
        seeds=made_with["seeds"][0],
        progress=not arguments.quiet,
        **Generation.from_dict(made_with).to_kwargs(),
    )
    if "base_prompts" not in made_with:
        return recording
    return with_base(recording, pipeline, taking_turns(made_with["base_prompts"]), progress=not arguments.quiet)


def _sensitivity(arguments: argparse.Namespace, pipeline: Any, kept: Scores) -> Scores:
    """How far each component's removal moves the outputs on a concept to keep, in the window of its scores."""
    from ..attribution import Attributor
    from ..objectives import objective_from_config

    objective = objective_from_config(kept.provenance["objective"])
    attributor = Attributor(pipeline, objective, kept.space, method="sensitivity")
    recording = _recorded(arguments, pipeline, kept)
    return attributor.run(recording, concept=kept.concept, progress=not arguments.quiet)


def _refined(arguments: argparse.Namespace, pipeline: Any, scores: Scores, selection: Selection) -> Scores:
    """The scores refined for the objective they are of."""
    from ..edits import refine
    from ..objectives import objective_from_config

    settings = scores.provenance["objective"]
    return refine(
        pipeline,
        _recorded(arguments, pipeline, scores),
        scores,
        selection,
        sign=_sign(arguments),
        objective=objective_from_config({**settings, "negative_guidance": arguments.negative_guidance}),
        rounds=arguments.rounds,
        progress=not arguments.quiet,
    )
