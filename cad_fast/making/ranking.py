"""What edits of any size are made from, and what each of them is predicted to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..attribution.measuring.plans import Target
from ..attribution.scores import Scores
from ..edits.damage import Expressed, Moved, objectives_under
from ..edits.edit import Edit
from ..edits.refining import refine
from ..edits.selection import Selection, Sign
from ..objectives import ConceptErasure, Objective
from ..recording.data import Recording
from .candidates import Candidate

REFINED_ROUNDS = 12
# Refining to erase aims as far beyond the base as the concept was on this side of it: edits that only cancel the
# concept leave traces, which guidance brings out again.
NEGATIVE_GUIDANCE = 1.0


@dataclass(frozen=True)
class Ranking:
    """Scores of a concept and of those to keep.

    Attributes:
        pipeline: the model.
        concept: among the recordings, the one to change.
        recordings: of the concept and of those to keep.
        scores: of the concept, to first order.
        spared: what ``Selection`` is to spare: "sensitivity" of the kept ones, and to erase "keep" too.
        objective: of the scores.
        sparing: per kept concept, what its scores and its damage are against.
        sign: "positive" to erase, "negative" to amplify.
    """

    pipeline: Any
    concept: str
    recordings: Mapping[str, Recording]
    scores: Scores
    spared: Mapping[str, Any]
    objective: Objective
    sparing: Mapping[str, ConceptErasure]
    sign: Sign

    def candidate(self, ratio: float) -> Candidate:
        """Refine the scores for an edit of this size, make it, and replay the recordings under it."""
        aim, recording = self.objective, self.recordings[self.concept]
        judged: Objective = self.objective
        if isinstance(aim, ConceptErasure):
            judged = Expressed(aim.timesteps, aim.base)
            aim = ConceptErasure(aim.base, aim.timesteps, negative_guidance=NEGATIVE_GUIDANCE)
        selection = Selection(ratio, **self.spared)
        settings: dict[str, Any] = {"sign": self.sign, "objective": aim, "rounds": REFINED_ROUNDS, "progress": False}
        edit = Edit.from_scores(
            refine(self.pipeline, recording, self.scores, selection, **settings), selection, sign=self.sign
        )
        targets = {self.concept: Target(judged, recording)}
        for each, against in self.sparing.items():
            targets[each] = Target(Moved(against.timesteps, base=against.base), self.recordings[each])
        moved = objectives_under(self.pipeline, edit, targets)
        left, left_of = moved.pop(self.concept), "concept"
        if self.sign == "negative":
            before = objectives_under(self.pipeline, edit, {self.concept: targets[self.concept]}, strength=0.0)
            left, left_of = left / before[self.concept], "loss"
        window = None if self.objective.timesteps is None else self.objective.timesteps.to_list()
        return Candidate(ratio, edit, left, moved, left_of, window)
