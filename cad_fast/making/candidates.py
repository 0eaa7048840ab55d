"""Edits of several sizes with what they are predicted to do, and the choice among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..edits.edit import Edit
from ..edits.selection import Sign

# An edit erases enough when no more of the concept is expressed than this (1 before, 0 at the base, see ``Expressed``):
# edits that stop short of the base leave traces. It costs too much when it moves the outputs on the concepts to keep by
# so much of what their prompts do (the mean over them). Both were chosen on the embedded model.
ENOUGH_LEFT = -0.05
MOST_MOVED = 0.1


@dataclass(frozen=True)
class Candidate:
    """An edit of one size, and what it is predicted to do.

    ``left``: to erase, how much of the concept is expressed (see ``Expressed``); to amplify, the loss relative to
    before. ``moved``: per kept concept, how far its outputs move, relative to what its prompt does.
    """

    ratio: float
    edit: Edit
    left: float
    moved: dict[str, float]
    left_of: str = "concept"

    @property
    def damage(self) -> float:
        return sum(self.moved.values()) / len(self.moved)

    def to_dict(self) -> dict[str, Any]:
        return {"ratio": self.ratio, "left": self.left, "left_of": self.left_of, "moved": self.moved}


def choose(candidates: Sequence[Candidate], sign: Sign) -> tuple[Candidate, str]:
    """The edit to take, and why.

    To erase: the smallest that leaves at most ``ENOUGH_LEFT`` of the concept; if none does, the one that leaves least.
    To amplify: the one with the least loss left. Edits that move what is kept by more than
    ``MOST_MOVED`` are left out, unless all do: then the one that moves it least is taken.
    """
    if len(candidates) == 1:
        return candidates[0], "the ratio was given"
    gentle = [each for each in candidates if each.damage <= MOST_MOVED]
    if not gentle:
        best = min(candidates, key=lambda each: each.damage)
        return best, f"every size moves what is kept by more than {MOST_MOVED:.0%} of its prompt; this one least"
    if sign == "positive":
        enough = [each for each in gentle if each.left <= ENOUGH_LEFT]
        if enough:
            return enough[0], f"the smallest size that leaves at most {ENOUGH_LEFT:g} of the concept"
        return min(
            gentle, key=lambda each: each.left
        ), "it leaves least of the concept among those that spare what is kept"
    return min(gentle, key=lambda each: each.left), "it lowers the loss most among those that spare what is kept"
