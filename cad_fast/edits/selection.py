"""Choose components by their scores: the highest or the lowest, per row, per tensor or over all of them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ..attribution.score_files import largest
from ..attribution.scores import Scores, TopScores
from ..choices import SCOPES, Scope
from ..components.module_components import ModuleComponents

Sign = Literal["positive", "negative"]

SIGNS: tuple[Sign, ...] = ("positive", "negative")


@dataclass(frozen=True, eq=False, repr=False)
class Selection:
    """How many components an edit takes, and what it spares.

    Attributes:
        ratio: share of all components (scope "global"), of each module's ("tensor") or of each weight row ("row").
        count: their number, in place of ``ratio``.
        scope: what ``ratio`` and ``count`` are of. "row" is for single weights only.
        keep: scores of concepts to keep, which lower the rank of what those need: see ``retention_aware``.
        keep_weight: how much they count; 0: not at all.
        sensitivity: how far each component's removal moves the outputs on concepts to keep (method "sensitivity").
            The ranking is then by gain against damage: see ``against_damage``.
        exponent: how much the damage counts; 0: not at all.
        compat: "paper" is the published rule of arXiv 2412.02542: int(ratio * row length) per row of the 2-D
            feed-forward weights, and fewer where fewer have the sign asked for. Rows with less than one are left
            untouched, with a warning. For the denoising loss the published script picks the other end of the scores
            than the derivation asks for, and so does this.

    Raises:
        ValueError: settings contradict each other or lie out of range.
    """

    ratio: float | None = None
    count: int | None = field(default=None, kw_only=True)
    scope: Scope = field(default="global", kw_only=True)
    keep: Sequence[Scores] = field(default=(), kw_only=True)
    keep_weight: float = field(default=0.5, kw_only=True)
    sensitivity: Sequence[Scores] = field(default=(), kw_only=True)
    exponent: float = field(default=0.5, kw_only=True)
    compat: Literal["paper"] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if (self.ratio is None) == (self.count is None):
            raise ValueError("give either ratio or count")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ValueError(f"ratio is {self.ratio}, expected more than 0 and at most 1")
        if self.count is not None and self.count < 1:
            raise ValueError(f"count is {self.count}, expected at least 1")
        if self.scope not in SCOPES:
            raise ValueError(f"unknown scope {self.scope!r}: expected one of {', '.join(SCOPES)}")
        for name in ("keep_weight", "exponent"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 0, finite")
        if self.compat not in (None, "paper"):
            raise ValueError(f"unknown compat {self.compat!r}: expected 'paper' or None")
        if self.compat is not None and (
            self.ratio is None or self.keep or self.sensitivity or self.scope not in ("row", "global")
        ):
            raise ValueError("compat='paper' takes a ratio, no keep and no sensitivity; its scope is the row")

    def to_dict(self) -> dict[str, Any]:
        """The selection as JSON, scores as the names of their concepts."""
        return {
            "ratio": self.ratio,
            "count": self.count,
            "scope": self.scope,
            "keep": [scores.concept for scores in self.keep],
            "keep_weight": self.keep_weight,
            "sensitivity": [scores.concept for scores in self.sensitivity],
            "exponent": self.exponent,
            "compat": self.compat,
        }

    def __repr__(self) -> str:
        settings = {key: value for key, value in self.to_dict().items() if value not in (None, [])}
        return f"Selection({', '.join(f'{key}={value!r}' for key, value in settings.items())})"


def select(scores: Scores, selection: Selection, *, sign: Sign = "positive") -> Tensor:
    """Choose the components with the highest (sign "positive") or the lowest scores ("negative").

    Components of the other sign are never chosen, so that fewer than asked for may be.

    Args:
        scores: of the concept.
        selection: how many, and what to spare.
        sign: which end of the scores.

    Returns:
        Component numbers, sorted int64 [k].

    Raises:
        ValueError: the selection does not fit the scores.
    """
    if sign not in SIGNS:
        raise ValueError(f"unknown sign {sign!r}: expected 'positive' or 'negative'")
    for each in (scores, *selection.keep, *selection.sensitivity):
        each.require_finite()  # checked when they were made; their tensors may have been written to since
    ratio, count, scope = selection.ratio, selection.count, selection.scope
    if selection.compat == "paper":
        assert ratio is not None
        return _select_as_published(scores, sign, ratio)
    if isinstance(scores, TopScores) and not selection.keep and not selection.sensitivity and scope != "row":
        return _of_the_kept(scores, selection, sign)
    values = scores.values
    if selection.keep:
        values = retention_aware(scores, selection.keep, selection.keep_weight, sign)
    if selection.sensitivity:
        values = values / against_damage(scores, selection.sensitivity, selection.exponent)
    if sign == "negative":
        values = -values
    if scope == "global":
        _require_some(ratio, [len(values)])
        return _top(values, _amount(ratio, count, len(values)))
    if scope == "row" and scores.space.kind != "weight":
        raise ValueError(f"scope 'row' needs single weights, these scores are of kind {scores.space.kind}")
    if scope == "tensor":
        _require_some(ratio, [entry.count for entry in scores.space.leading])
    chosen = []
    for entry in scores.space.leading:
        part = values[entry.offset : entry.offset + entry.count]
        if scope == "tensor":
            local = _top(part, _amount(ratio, count, entry.count))
        else:
            local = _top_of_rows(part.view(entry.rows, entry.columns), max(1, _amount(ratio, count, entry.columns)))
        chosen.append(local + entry.offset)
    return torch.cat(chosen)


def _of_the_kept(scores: TopScores, selection: Selection, sign: Sign) -> Tensor:
    """Choose among the scores that were kept, as among all. Raises ValueError where those do not tell."""
    negative, ratio, count = sign == "negative", selection.ratio, selection.count
    if selection.scope == "global":
        _require_some(ratio, [len(scores)])
        return scores.choose(_amount(ratio, count, len(scores)), negative=negative)
    leading = scores.space.leading
    _require_some(ratio, [entry.count for entry in leading])
    chosen = [scores.choose(_amount(ratio, count, entry.count), negative=negative, entry=entry) for entry in leading]
    return torch.cat(chosen)


def retention_aware(scores: Scores, keep: Sequence[Scores], weight: float, sign: Sign = "positive") -> Tensor:
    """Scores less ``weight`` times the mean positive score of the concepts to keep; float32 [n].

    With ``sign`` negative, where the lowest scores are wanted: less the mean negative score, so that what is negative
    for the others too ranks lower. Every concept's scores are first divided by their root mean square, so that concepts
    that J expresses more strongly do not count for more.
    Raises ValueError when the scores are over other components, or the weight is negative or not finite.
    """
    if not 0 <= weight < float("inf"):
        raise ValueError(f"keep_weight is {weight}, expected at least 0, finite")
    scores.require_same_space(keep)
    each = torch.stack([_normalised(other) for other in keep])
    cost = (each.clamp(min=0) if sign == "positive" else each.clamp(max=0)).mean(0)
    return _normalised(scores) - weight * cost


def against_damage(scores: Scores, sensitivity: Sequence[Scores], exponent: float = 0.5) -> Tensor:
    """What to divide scores by to rank by gain against damage: (h + median h) ** exponent, float32 [n], above 0.

    h is the mean of the sensitivities of the concepts to keep, each divided by its own mean: the squared change of
    their outputs when a component is removed. The median keeps components that do nothing from the top. At an exponent
    of 0.5 the ranking is by the change of J per change of the kept outputs, at 0 the scores' own.
    Raises ValueError for an exponent below 0, for scores that are no sensitivity or are over other components.
    """
    if not 0 <= exponent < float("inf"):
        raise ValueError(f"exponent is {exponent}, expected at least 0, finite")
    scores.require_same_space(sensitivity)
    for other in sensitivity:
        if other.provenance.get("method") != "sensitivity":
            made = other.provenance.get("method", "an unknown method")
            raise ValueError(
                f"sensitivity: the scores of {other.concept!r} were made by {made!r}, expected method 'sensitivity'"
            )
    h = torch.stack([other.values / other.values.mean().clamp(min=1e-30) for other in sensitivity]).mean(0)
    return (h + h.median()).clamp(min=1e-30) ** exponent


def _normalised(scores: Scores) -> Tensor:
    return scores.values / scores.values.square().mean().sqrt().clamp(min=1e-30)


def _require_some(ratio: float | None, totals: Sequence[int]) -> None:
    """Raises ValueError when ``ratio`` rounds to no component of any of so many."""
    if ratio is not None and not any(round(ratio * total) for total in totals):
        raise ValueError(
            f"ratio {ratio} of {max(totals)} components is less than one: take {1 / max(totals):.2g} or more or a count"
        )


def _amount(ratio: float | None, count: int | None, total: int) -> int:
    return min(total, count if count is not None else round(float(ratio or 0) * total))


def _top(values: Tensor, k: int) -> Tensor:
    """Sorted indices of the ``k`` highest of ``values`` [n] that are above zero; ties go to the lower index."""
    chosen = largest(values, k)
    return chosen[values[chosen] > 0]


def _top_of_rows(matrix: Tensor, k: int) -> Tensor:
    order = torch.sort(matrix, dim=1, descending=True, stable=True)
    chosen = order.indices[:, :k] + matrix.shape[1] * torch.arange(matrix.shape[0])[:, None]
    return chosen[order.values[:, :k] > 0].sort().values


def _select_as_published(scores: Scores, sign: Sign, ratio: float) -> Tensor:
    if scores.space.kind != "weight":
        raise ValueError(f"compat='paper' needs single weights, these scores are of kind {scores.space.kind}")
    values = scores.values if sign == "positive" else -scores.values
    objective = scores.provenance.get("objective", {})
    if sign == "negative" and objective.get("name") == "denoising_loss":
        values = -values
    chosen, untouched = [], []
    for entry, part in zip(scores.space, scores.space.split(values).values(), strict=True):
        if not _is_paper_weight(entry):
            continue
        k = int(ratio * entry.columns)
        if k == 0:
            untouched.append(f"{entry.module} (rows of {entry.columns})")
            continue
        chosen.append(_top_of_rows(part.view(entry.rows, entry.columns), k) + entry.offset)
    if untouched:
        warnings.warn(
            f"the published rule takes int({ratio} * row length) = 0 weights per row of {len(untouched)} modules and "
            f"leaves them untouched: {', '.join(untouched[:4])}{', ...' if len(untouched) > 4 else ''}",
            stacklevel=3,
        )
    if sum(map(len, chosen)) == 0:
        raise ValueError(
            f"the published rule edits nothing at ratio {ratio}: every row is too short, no score is {sign}, or there "
            "is no feed-forward weight"
        )
    return torch.cat(chosen)


def _is_paper_weight(entry: ModuleComponents) -> bool:
    return len(entry.weight_shape) == 2 and "feed-forward" in entry.presets
