"""Scores of which only the largest were kept: what they can answer, they answer as all would; the rest is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..components.space import ComponentSpace, ModuleComponents
from ..diffusion.layers import match_names
from .scores import Scores


class TopScores(Scores):
    """The scores of largest absolute value, as ``Scores.save(top=K)`` keeps them.

    ``indices`` int64 [K], sorted, and ``kept`` float32 [K]. Every other score is at most as large as the smallest that
    was kept. So the highest or lowest can be chosen among them as long as there are enough; ``values``, and whatever
    needs the scores of all components, raises ValueError.
    """

    def __init__(self, indices: Tensor, kept: Tensor, space: ComponentSpace, provenance: dict[str, Any]) -> None:
        indices = indices.detach().to("cpu", torch.int64)
        if indices.ndim != 1 or kept.shape != indices.shape or not len(indices):
            raise ValueError(f"{list(kept.shape)} scores and {list(indices.shape)} indices, expected as many")
        if int(indices[0]) < 0 or int(indices[-1]) >= space.n or not bool((indices[1:] > indices[:-1]).all()):
            raise ValueError(f"the indices of the scores are not sorted within 0..{space.n - 1}")
        self.indices, self.kept = indices, kept.detach().to("cpu", torch.float32)
        self.space, self.provenance = space, provenance
        self.standard_error, self.curvature = None, None
        if not bool(torch.isfinite(self.kept).all()):
            raise ValueError("the scores are not finite")

    @property
    def values(self) -> Tensor:  # type: ignore[override]
        """Raises ValueError: they are not all known."""
        raise ValueError(
            f"the scores of {self.concept!r} hold the {len(self.indices)} largest of {self.space.n}, and this needs "
            "all of them: save them without top (--save-top)"
        )

    def __repr__(self) -> str:
        return f"Scores({self.concept!r}, the {len(self.indices)} largest of {self.space.n} of kind {self.space.kind})"

    def of_modules(self, target_modules: str | Sequence[str]) -> Scores:
        """As of all scores. Raises ValueError also when none of the modules' scores was kept."""
        names = match_names([entry.module for entry in self.space], target_modules)
        space = self.space.restrict(names)
        offsets = {entry.module: entry.offset for entry in space}
        parts, kept = [], []
        for entry in self.space:
            if entry.module in offsets:
                low, high = self._span(entry)
                parts.append(self.indices[low:high] - entry.offset + offsets[entry.module])
                kept.append(self.kept[low:high])
        return TopScores(torch.cat(parts), torch.cat(kept), space, self._of_some())

    def top(self, k: int = 10, *, negative: bool = False) -> list[tuple[str, float]]:
        chosen = self.choose(min(k, len(self)), negative=negative)
        known = dict(zip(self.indices.tolist(), self.kept.tolist(), strict=True))
        ordered = sorted(chosen.tolist(), key=lambda index: (known[index] if negative else -known[index], index))
        return [(self.space.label(index), known[index]) for index in ordered]

    def choose(self, k: int, *, negative: bool = False, entry: ModuleComponents | None = None) -> Tensor:
        """The ``k`` highest (or lowest) scores above (below) zero, of all or of one module; sorted int64 [k].

        Raises ValueError when fewer were kept.
        """
        low, high = (0, len(self.indices)) if entry is None else self._span(entry)
        values = -self.kept[low:high] if negative else self.kept[low:high]
        above = int((values > 0).sum())
        if k > above:
            sign = "negative" if negative else "positive"
            where = "" if entry is None else f" in {entry.module}"
            raise ValueError(
                f"the scores of {self.concept!r} hold the {len(self.indices)} largest of {self.space.n}, {above} of "
                f"them {sign}{where}: {k} cannot be chosen; take fewer, or save more of them (--save-top)"
            )
        order = torch.sort(values, descending=True, stable=True).indices[:k]
        return self.indices[low:high][order].sort().values

    def _span(self, entry: ModuleComponents) -> tuple[int, int]:
        bounds = torch.tensor([entry.offset, entry.offset + entry.count])
        low, high = torch.searchsorted(self.indices, bounds).tolist()
        return low, high
