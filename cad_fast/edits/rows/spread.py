"""Arguments given once for all, per prompt or per edit of a prompt, spread over the edits of every prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from ...diffusion.timesteps import TimestepWindow, Window
from .row_edits import RowEdits
from .uses import EditUse, checked_strength, checked_window

Names: TypeAlias = Sequence[str | Sequence[str] | None]
Weights: TypeAlias = float | Sequence[float | Sequence[float | None] | None] | None
Windows: TypeAlias = "Window | Sequence[Window | Sequence[Window | None] | None] | None"
Branches: TypeAlias = str | Sequence[str | Sequence[str]]

BASE = "__base__"
BRANCHES = ("both", "conditional")


class PromptUse(NamedTuple):
    """One edit of one prompt; branch "both" acts on the conditional and the unconditional rows."""

    name: str
    strength: float
    window: TimestepWindow | None
    branch: str

    @property
    def in_row(self) -> EditUse:
        return EditUse(self.name, self.strength, self.window)


PromptUses = tuple[PromptUse, ...]


def per_prompt_uses(
    edits: RowEdits, edit_names: Names, edit_weights: Weights, windows: Windows, branch: Branches
) -> list[PromptUses]:
    """One tuple per prompt. Raises ValueError naming what does not fit; nothing else happens then."""
    if isinstance(edit_names, str):
        raise ValueError(f"edit_names is {edit_names!r}, expected a list with one entry per prompt")
    names = [_names(edits, entry, number) for number, entry in enumerate(edit_names)]
    if not names:
        raise ValueError("edit_names is empty, expected one entry per prompt")
    counts = [len(own) for own in names]
    weights = _spread("edit_weights", 1.0 if edit_weights is None else edit_weights, counts)
    spans = _spread("windows", windows, counts)
    sides = _spread("branch", branch, counts)
    return [tuple(map(_checked_use, own, *rest)) for own, *rest in zip(names, weights, spans, sides, strict=True)]


def active_uses(
    edits: RowEdits, names: str | Sequence[str], edit_weights: Weights, windows: Windows, branch: Branches
) -> PromptUses:
    """What ``set_edits`` is given: names, and one value for all or a list with one per name."""
    listed = [names] if isinstance(names, str) else list(names)
    if not listed:
        return ()
    nested: list[Any] = [[value] if isinstance(value, list) else value for value in (edit_weights, windows, branch)]
    return per_prompt_uses(edits, [listed], *nested)[0]


def _names(edits: RowEdits, entry: str | Sequence[str] | None, number: int) -> list[str]:
    listed = [entry] if entry is None or isinstance(entry, str) else list(entry)
    names = [edits.require(name) for name in listed if name not in (None, BASE)]
    if names and len(names) < len(listed):
        raise ValueError(f"edit_names[{number}] is {entry!r}: {BASE!r} stands for no edit and goes with no other")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"edit_names[{number}] names edit {twice[0]!r} twice")
    return names


def _spread(what: str, value: Any, counts: Sequence[int]) -> list[list[Any]]:
    """A value for each edit of each prompt. Lists go by prompts, and lists within them by the prompt's edits."""
    if not isinstance(value, list):
        return [[value] * count for count in counts]
    if len(value) != len(counts):
        raise ValueError(f"{what} has {len(value)} entries for {len(counts)} prompts, expected one per prompt")
    spread = []
    for number, (own, count) in enumerate(zip(value, counts, strict=True)):
        if isinstance(own, list) and len(own) != count:
            raise ValueError(f"{what}[{number}] has {len(own)} entries for {count} edits, expected one per edit")
        spread.append(own if isinstance(own, list) else [own] * count)
    return spread


def _checked_use(name: str, strength: Any, window: Any, branch: Any) -> PromptUse:
    if branch not in BRANCHES:
        raise ValueError(f"the branch of edit {name!r} is {branch!r}, expected one of {', '.join(BRANCHES)}")
    strength = 1.0 if strength is None else checked_strength(strength, name)
    return PromptUse(name, strength, checked_window(window, name), branch)
