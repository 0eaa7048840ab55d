"""Scores for removing many components together: gradients along the way from the intact network to the edited one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from ..ablation import Ablation
from ..attribution.ablated import gradient_at_ablations
from ..attribution.gradient import require_unchanged
from ..attribution.scores import Scores
from ..choices import Scope
from ..denoiser_calls import denoiser_of
from ..objectives import ConceptErasure, Objective
from ..recording_data import Recording
from .select import Sign, described, select
from .trust import warn_if_untrusted

# The trapezoid rule over the way, at strengths 0, 1/2 and 1 of the edit.
STRENGTHS = (0.0, 0.5, 1.0)
WEIGHTS = (1.0, 2.0, 1.0)


def refine(
    pipeline: Any,
    recording: Recording,
    scores: Scores,
    ratio: float | None = None,
    *,
    count: int | None = None,
    scope: Scope = "global",
    sign: Sign = "positive",
    keep: Sequence[Scores] = (),
    keep_weight: float = 1.0,
    sensitivity: Sequence[Scores] = (),
    exponent: float = 0.5,
    objective: Objective | None = None,
    rounds: int = 12,
    rows_per_pass: int = 60,
    progress: bool = True,
) -> Scores:
    """Scores that hold for an edit of this size, rather than for one component at a time.

    First-order scores overshoot: J is bent, and the many components with the highest scores remove what they express
    several times over. So the components are selected, J's gradient is taken at strengths 0, 1/2 and 1 of that edit
    (in one pass of the denoiser) and averaged by the trapezoid rule, which is each component's share in the change of
    J along the way (integrated gradients, arXiv 1703.01365, with the edit as the path's end); then they are selected
    anew by the running mean of these, ``rounds`` times.

    ``scores``: first-order scores of the concept to start from. ``ratio``, ``count``, ``scope``, ``sign``, ``keep``,
    ``keep_weight``, ``sensitivity`` and ``exponent`` as for ``erase``, which then makes the edit from what is returned.
    ``objective``: as for the scores.
    Cost: ``rounds`` forward and backward passes of three times the recording's rows.
    Raises ValueError when the recording is of another model, of this one before it was edited, or lacks what the
    objective needs.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}, expected at least 1")
    denoiser = denoiser_of(pipeline)
    scores.space.fingerprint.require_same(recording.fingerprint, "the scores")
    objective = objective or ConceptErasure()
    require_unchanged(denoiser, recording, objective)
    settings: dict[str, Any] = dict(
        ratio=ratio,
        count=count,
        scope=scope,
        sign=sign,
        keep=keep,
        keep_weight=keep_weight,
        sensitivity=sensitivity,
        exponent=exponent,
    )
    current = scores
    for number in tqdm(range(rounds), desc="refining", unit="round", disable=not progress):
        chosen = select(current, **settings)
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
    return Scores(current.values, scores.space, _provenance(scores, settings, objective, recording, rounds))


def _provenance(
    scores: Scores, settings: dict[str, Any], objective: Objective, recording: Recording, rounds: int
) -> dict[str, Any]:
    refined = {
        "rounds": rounds,
        "selection": described(settings),
        "objective": objective.config(),
        "prompts": recording.prompts,
        "seeds": recording.seeds,
        "trust_of_first_scores": scores.trust,
    }
    # How well the first scores predict says nothing about these.
    own = ("trust", "estimate", "stop_when", "halves")
    return {**{key: value for key, value in scores.provenance.items() if key not in own}, "refined": refined}
