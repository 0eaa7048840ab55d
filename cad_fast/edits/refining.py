"""Scores for removing many components together: gradients along the way from the intact network to the edited one."""

from __future__ import annotations

from typing import Any

import torch
from tqdm.auto import tqdm

from ..attribution.measuring.unchanged import require_unchanged
from ..attribution.methods.ablated_gradient import gradient_at_ablations
from ..attribution.scores import Scores
from ..components.ablation import Ablation
from ..diffusion.denoisers import denoiser_of
from ..objectives import ConceptErasure, Objective, fitted
from ..recording.data import Recording
from .selection import Selection, Sign, select
from .untrusted import warn_if_untrusted

# The trapezoid rule over the way, at strengths 0, 1/2 and 1 of the edit.
STRENGTHS = (0.0, 0.5, 1.0)
WEIGHTS = (1.0, 2.0, 1.0)


def refine(
    pipeline: Any,
    recording: Recording,
    scores: Scores,
    selection: Selection,
    *,
    sign: Sign = "positive",
    objective: Objective | None = None,
    rounds: int = 12,
    rows_per_pass: int = 60,
    progress: bool = True,
) -> Scores:
    """Refine scores so that they hold for an edit of this size, rather than for one component at a time.

    First-order scores overshoot: J is bent, and the many components with the highest scores remove what they express
    several times over. So the components are selected, J's gradient is taken at strengths 0, 1/2 and 1 of that edit
    (in one pass of the denoiser) and averaged by the trapezoid rule, which is each component's share in the change of
    J along the way (integrated gradients, arXiv 1703.01365, with the edit as the path's end). Then they are selected
    anew by the running mean of these, ``rounds`` times.

    Cost: ``rounds`` forward and backward passes of three times the recording's rows.

    Args:
        pipeline: the model, or its denoiser.
        recording: of the concept.
        scores: first-order scores of the concept to start from.
        selection: of the edit that ``Edit.from_scores`` then makes from what is returned.
        sign: "positive" to erase, "negative" to amplify.
        objective: as for the scores. None for ``ConceptErasure()``, which with guidance off compares with the outputs
            for a base prompt (see ``objectives.fitted``).
        rounds: how often the components are selected anew.
        rows_per_pass: at most so many rows go through the denoiser at once.
        progress: whether to show a progress bar.

    Returns:
        Scores with how they were refined in their provenance.

    Raises:
        ValueError: the recording is of another model, of this one before it was edited, or lacks what the objective
            needs.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}, expected at least 1")
    denoiser = denoiser_of(pipeline)
    scores.space.fingerprint.require_same(recording.fingerprint, "the scores")
    objective, recording = fitted(objective or ConceptErasure(), recording, pipeline)
    require_unchanged(denoiser, recording, objective)
    current = scores
    for number in tqdm(range(rounds), desc="refining", unit="round", disable=not progress):
        chosen = select(current, selection, sign=sign)
        if len(chosen) == 0:
            raise ValueError(f"no component has a {sign} score for {scores.concept!r}: there is nothing to refine")
        if number == 0:
            warn_if_untrusted(scores, len(chosen) / scores.space.n)
        path = [Ablation.from_indices(scores.space.n, chosen, 1 - strength) for strength in STRENGTHS]
        along = gradient_at_ablations(
            denoiser, recording, objective, scores.space, path, WEIGHTS, rows_per_pass=rows_per_pass
        )
        # Half of the first estimate is the intact network's; from then on every round has the same say.
        share = 1 / (number + 2)
        current = Scores(torch.lerp(current.values, along, share), scores.space, scores.provenance)
    return Scores(
        current.values,
        scores.space,
        _provenance(scores, {**selection.to_dict(), "sign": sign}, objective, recording, rounds),
    )


def _provenance(
    scores: Scores, selection: dict[str, Any], objective: Objective, recording: Recording, rounds: int
) -> dict[str, Any]:
    refined = {
        "rounds": rounds,
        "selection": selection,
        "objective": objective.config(),
        "prompts": recording.prompts,
        "seeds": recording.seeds,
        "trust_of_first_scores": scores.trust,
    }
    # How well the first scores predict says nothing about these.
    own = ("trust", "estimate", "stop_when", "halves")
    return {**{key: value for key, value in scores.provenance.items() if key not in own}, "refined": refined}
