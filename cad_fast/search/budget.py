"""Search for an edit within a budget: what it must erase, and how much of everything else it must leave."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..evaluation.comparison import Comparison
from ..evaluation.prompts import PromptSet, unknown

OTHERS = "others"


@dataclass(frozen=True)
class Budget:
    """An edit that leaves ``erase`` recognised in at most ``at_most`` percent of its pictures, and what it may cost.

    ``keep``: percent of their accuracy before the edit that must be left, of concepts by name, of all the other
    concepts together ("others"), or of another axis ("style"), which is judged on the other concepts' pictures.
    Raises ValueError for percentages outside 0 to 100, an empty ``keep``, or one that names what is to be erased.
    """

    erase: str
    keep: Mapping[str, float]
    at_most: float = 5.0

    def __post_init__(self) -> None:
        if not self.keep:
            raise ValueError(f"the budget names nothing to keep, expected for instance {{{OTHERS!r}: 95}}")
        if self.erase in self.keep:
            raise ValueError(f"the budget is to erase {self.erase!r} and to keep it")
        for name, percent in {**self.keep, self.erase: self.at_most}.items():
            if not 0 <= percent <= 100:
                raise ValueError(f"the budget of {name!r} is {percent}, expected percent, 0 to 100")

    @classmethod
    def parse(cls, erase: str, keep: Iterable[str], at_most: float = 5.0) -> Budget:
        """From texts such as ``face=95``. Raises ValueError naming the one that is not of this form."""
        parsed: dict[str, float] = {}
        for text in keep:
            name, _, percent = text.rpartition("=")
            try:
                value = float(percent)
            except ValueError:
                value = float("nan")
            if not name or value != value:
                raise ValueError(f"{text!r} is no budget, expected NAME=PERCENT such as face=95")
            if name in parsed:
                raise ValueError(f"{name!r} is kept twice")
            parsed[name] = value
        return cls(erase, parsed, at_most)

    def concepts(self, prompts: PromptSet) -> tuple[str, ...]:
        """The concepts that have to be looked at, the target first.

        Raises ValueError naming what the prompts do not have, or when they have no other concept.
        """
        axis, *others = prompts.axes
        known = prompts.concepts(axis)
        for name in (self.erase, *self.keep):
            if name not in known and (name == self.erase or name not in (OTHERS, *others)):
                raise ValueError(unknown("concept or axis", name, (*known, OTHERS, *others)))
        everything = any(name == OTHERS or name in others for name in self.keep)
        kept = [name for name in known if name != self.erase and (everything or name in self.keep)]
        if not kept:
            raise ValueError(f"the prompts have no {axis} but {self.erase!r}: there is nothing that could be kept")
        return (self.erase, *kept)

    def require_judged(self, prompts: PromptSet, known: Iterable[str]) -> None:
        """Raises ValueError naming the axis to be kept that a scorer of the axes ``known`` does not judge."""
        for name in self.keep:
            if name in prompts.axes[1:] and name not in prompts.concepts(prompts.axes[0]) and name not in known:
                raise ValueError(f"the scorer cannot judge what is to be kept: {unknown('axis', name, known)}")

    def shortfalls(self, comparison: Comparison) -> dict[str, float]:
        """By how many percentage points each part is missed; empty when the edit is within the budget.

        What was never recognised before cannot be lost. Raises ValueError naming what was not evaluated.
        """
        missed = {self.erase: 100 * comparison.target.after - self.at_most}
        for name, percent in self.keep.items():
            if name == OTHERS:
                change = comparison.others
            else:
                change = comparison.concepts.get(name) or comparison.axes.get(name)
            if change is None:
                raise ValueError(f"the budget keeps {name!r}, which was not evaluated")
            missed[name] = percent - (100.0 if change.kept is None else change.kept)
        return {name: points for name, points in missed.items() if points > 1e-9}

    def to_dict(self) -> dict[str, Any]:
        return {"erase": self.erase, "at_most": self.at_most, "keep": dict(self.keep)}


def shortfall_text(missed: Mapping[str, float], erase: str) -> str:
    """In words, by how much a budget is missed."""
    if not missed:
        return "within the budget"
    parts = [
        f"{name} is {points:.0f} points " + ("too often recognised" if name == erase else "short")
        for name, points in missed.items()
    ]
    return "missed: " + ", ".join(parts)


@dataclass(frozen=True)
class Rule:
    """How components are ranked: see ``select`` for ``keep_weight`` (0: not) and ``exponent`` (None: not).

    ``refined``: the scores are refined for the edit's size first (see ``refine``).
    """

    name: str
    keep_weight: float = 0.0
    exponent: float | None = None
    refined: bool = False


RULES: tuple[Rule, ...] = (
    Rule("scores"),
    Rule("contrast", keep_weight=0.5),
    Rule("gain against damage", keep_weight=0.5, exponent=0.5),
    Rule("refined", keep_weight=0.5, refined=True),
    Rule("refined, gain against damage", keep_weight=0.5, exponent=0.5, refined=True),
)


def order_to_try(missed: Sequence[Mapping[str, float] | None], erase: str) -> int | None:
    """Which of a rule's edits, sorted from the least to the most damaging, to draw next; None when nothing is open.

    ``missed``: what was found for each, None where it was not drawn yet. A larger edit erases more and damages more, so
    that one that leaves too much of the target rules out the smaller ones, one that costs the others too much the
    larger ones, and one within the budget too: less damage is sought then. The middle of what is left is next.
    """
    low, high = 0, len(missed)
    for number, shortfalls in enumerate(missed):
        if shortfalls is None:
            continue
        if erase in shortfalls:
            low = max(low, number + 1)
        if not shortfalls or set(shortfalls) - {erase}:
            high = min(high, number)
    open_ones = [number for number in range(low, high) if missed[number] is None]
    return open_ones[len(open_ones) // 2] if open_ones else None
