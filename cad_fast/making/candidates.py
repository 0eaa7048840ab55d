"""Edits of several sizes with what they are predicted to do, and the choice among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..edits.edit import Edit
from ..edits.selection import Sign

# An edit erases enough when no more of the concept is expressed than this (1 before, 0 at the base, see ``Expressed``):
# edits that stop short of the base leave traces. And the model must see the concept in no more than this share of the
# pictures that the edit draws. It costs too much when the model sees less than so much of one of the concepts to keep,
# in pictures of that; or where it was not asked, when outputs on what is to be kept move by so much of what their
# prompts do (the mean over them). All were chosen on the first embedded model, but that the model is asked of what is
# kept: "moved" says too much on the second one, where a mean over what is kept hid a face that was lost with the cat.
ENOUGH_LEFT = -0.05
ENOUGH_SEEN = 0.0
ENOUGH_KEPT = 0.6
MOST_MOVED = 0.2
# A few pictures in which nothing is seen do not tell none from a few. So one size more is taken, where it costs little.
# What costs little need not be looked at.
LITTLE_MOVED = 0.1


@dataclass(frozen=True)
class Candidate:
    """An edit of one size, and what it is predicted to do.

    ``left``: to erase, how much of the concept is expressed (see ``Expressed``); to amplify, the loss relative to
    before. ``moved``: per kept concept, how far its outputs move, relative to what its prompt does. ``window``: the
    timesteps that it was made for, [highest, lowest]. ``seen``: to erase, the share of the pictures drawn under the
    edit in which the intact model sees the concept; None where it was not asked. ``kept``: of the kept
    concept that fares worst, the share of its pictures in which the model still sees it, of those in which it did
    before; None where it was not asked.
    """

    ratio: float
    edit: Edit
    left: float
    moved: dict[str, float]
    left_of: str = "concept"
    window: list[float] | None = None
    seen: float | None = None
    kept: float | None = None

    @property
    def damage(self) -> float:
        return sum(self.moved.values()) / len(self.moved)

    @property
    def gentle(self) -> bool:
        """Whether what is to be kept is still seen, or moves by no more than ``MOST_MOVED``."""
        return self.damage <= MOST_MOVED if self.kept is None else self.kept >= ENOUGH_KEPT

    @property
    def enough(self) -> bool:
        """Whether it leaves so little of the concept that no larger one has to be made."""
        return self.gentle and self.left <= ENOUGH_LEFT and (self.seen is None or self.seen <= ENOUGH_SEEN)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the edit, as JSON."""
        return {
            "ratio": self.ratio,
            "window": self.window,
            "left": self.left,
            "left_of": self.left_of,
            "seen": self.seen,
            "kept": self.kept,
            "moved": self.moved,
        }


def choose(candidates: Sequence[Candidate], sign: Sign) -> tuple[Candidate, str]:
    """The edit to take, and why.

    To erase: the first that is ``enough``, or the one after it, if that is too and moves what is kept by no more than
    ``LITTLE_MOVED``; if none is, the one in whose pictures least is seen, then the one that leaves least. To amplify:
    the one with the least loss left. Edits that are not ``gentle``, or to amplify move what is kept by more than
    ``LITTLE_MOVED``, are left out, unless all are: then the one that moves least of what is kept is taken.

    Args:
        candidates: in the order in which they were made, smaller before larger.
        sign: "positive" to erase, "negative" to amplify.

    Returns:
        One of them, and the reason in words.
    """
    gentle = [each for each in candidates if (each.gentle if sign == "positive" else each.damage <= LITTLE_MOVED)]
    if not gentle:
        best = min(candidates, key=lambda each: each.damage)
        return best, "every size changes too much of what is kept; this one moves it least"
    if sign == "positive":
        first = next((number for number, each in enumerate(candidates) if each.enough), None)
        if first is not None:
            chosen, size = candidates[first], "the smallest size"
            following = candidates[first + 1 : first + 2]
            if following and following[0].enough and following[0].damage <= LITTLE_MOVED:
                chosen, size = following[0], "one size more than the smallest"
            looked = "" if chosen.seen is None else ", and in whose pictures the model sees none of it"
            return chosen, f"{size} that leaves at most {ENOUGH_LEFT:g} of the concept{looked}"
        best = min(gentle, key=lambda each: (1.0 if each.seen is None else each.seen, each.left))
        return best, "it leaves least of the concept among those that spare what is kept"
    return min(gentle, key=lambda each: each.left), "it lowers the loss most among those that spare what is kept"
