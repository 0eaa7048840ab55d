"""How far scores can be trusted: the change of J they predict for ablations, against the change that is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..ablation import Ablation

BOOTSTRAP = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Trust:
    """Correlation of predicted with measured J over ``n`` random ablations of a ``fraction`` of the components.

    Intervals are bootstrap percentiles over the ablations. As in COAR (arXiv 2404.11534, section 3), a component
    counts as predicted well where ablations that no estimate has seen come in the right order.
    """

    fraction: float
    n: int
    pearson: float
    pearson_interval: tuple[float, float]
    spearman: float
    spearman_interval: tuple[float, float]

    @classmethod
    def of(cls, predicted: Tensor, measured: Tensor, fraction: float, seed: int = 0) -> Trust:
        """From predicted and measured J, float [n]. Raises ValueError for fewer than 8 or values that are all equal."""
        if predicted.shape != measured.shape or predicted.dim() != 1:
            raise ValueError(f"predicted has shape {list(predicted.shape)}, measured {list(measured.shape)}")
        if len(measured) < 8:
            raise ValueError(f"a correlation needs at least 8 ablations, got {len(measured)}")
        predicted, measured = predicted.double().cpu(), measured.double().cpu()
        for name, values in (("predicted", predicted), ("measured", measured)):
            if float(values.std()) == 0:
                raise ValueError(f"all {name} values of J are {float(values[0])}: there is nothing to correlate")
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(len(measured), (BOOTSTRAP, len(measured)), generator=generator)
        ranks = _ranks(predicted), _ranks(measured)
        return cls(
            fraction,
            len(measured),
            float(_correlation(predicted, measured)),
            _interval(_correlation(predicted[drawn], measured[drawn])),
            float(_correlation(*ranks)),
            # Resampled ranks stand in for ranks of resamples, whose ties would have to be averaged anew.
            _interval(_correlation(ranks[0][drawn], ranks[1][drawn])),
        )

    def to_dict(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def predicted_change(values: Tensor, ablations: Sequence[Ablation]) -> Tensor:
    """J under each ablation less J of the intact network, as scores [n] predict it; float64 [len(ablations)]."""
    values = values.double()
    changes = []
    for ablation in ablations:
        lost = 1 - ablation.factors
        changes.append(-(values[ablation.indices] * lost).sum())
    return torch.stack(changes)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's r along the last dimension; NaN where one side does not vary."""
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 0, ties sharing their mean."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0)
    return ((ends - counts + ends - 1).double() / 2)[inverse]


def _interval(resampled: Tensor) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low, high = resampled[resampled.isfinite()].quantile(torch.tensor([tail, 1 - tail], dtype=resampled.dtype)).tolist()
    return low, high
