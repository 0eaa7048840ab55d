"""How far scores can be trusted: the change of J they predict for ablations, against the change that is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..components.ablation import Ablation
from .curvature import Curvature
from .scores import Scores

BOOTSTRAP = 2000
LEVEL = 0.95
# Fewer ablations than this are not correlated.
FEWEST = 8


@dataclass(frozen=True)
class Trust:
    """How well scores predict J under random ablations that no estimate has seen (COAR, arXiv 2404.11534, section 3).

    Intervals are 95% bootstrap percentiles over the ablations.

    Args:
        fraction: The share of the components that each ablation removes.
        n: How many ablations there were.
        pearson: The correlation of predicted with measured J.
        pearson_interval: Its interval.
        spearman: The correlation of their ranks.
        spearman_interval: Its interval.
        slope: By how much J changes for each unit that the prediction changes (least squares). 1 is calibrated, less
            means that predictions are too large.
        slope_interval: Its interval.
    """

    fraction: float
    n: int
    pearson: float
    pearson_interval: tuple[float, float]
    spearman: float
    spearman_interval: tuple[float, float]
    slope: float
    slope_interval: tuple[float, float]

    @classmethod
    def of(cls, predicted: Tensor, measured: Tensor, fraction: float, seed: int = 0) -> Trust:
        """Compare predicted with measured J, float [n].

        Raises:
            ValueError: There are fewer than 8, all of one side are equal, or some are NaN or infinite.
        """
        if predicted.shape != measured.shape or predicted.dim() != 1:
            raise ValueError(f"predicted has shape {list(predicted.shape)}, measured {list(measured.shape)}")
        if len(measured) < FEWEST:
            raise ValueError(f"a correlation needs at least {FEWEST} ablations, got {len(measured)}")
        predicted, measured = predicted.double().cpu(), measured.double().cpu()
        for name, values in (("predicted", predicted), ("measured", measured)):
            if not bool(values.isfinite().all()):
                raise ValueError(f"some {name} values of J are NaN or infinite")
            if float(values.std()) == 0:
                raise ValueError(f"all {name} values of J are {float(values[0])}: there is nothing to correlate")
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(len(measured), (BOOTSTRAP, len(measured)), generator=generator)
        ranks = _ranks(predicted), _ranks(measured)
        return cls(
            fraction,
            len(measured),
            float(correlation(predicted, measured)),
            _interval(correlation(predicted[drawn], measured[drawn])),
            float(correlation(*ranks)),
            # Resampled ranks stand in for ranks of resamples, whose ties would have to be averaged anew.
            _interval(correlation(ranks[0][drawn], ranks[1][drawn])),
            float(_slope(predicted, measured)),
            _interval(_slope(predicted[drawn], measured[drawn])),
        )

    def __str__(self) -> str:
        low, high = self.pearson_interval
        return (
            f"r = {self.pearson:.2f} [{low:.2f}, {high:.2f}], slope {self.slope:.2f} "
            f"on {self.n} ablations of {self.fraction:.0%}"
        )

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Trust:
        """Read what ``to_dict`` gave. Raises TypeError when entries are missing or unknown."""
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()
        }
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def predicted_change(values: Tensor, ablations: Sequence[Ablation], curvature: Curvature | None = None) -> Tensor:
    """Predict J under each ablation less J of the intact network.

    Args:
        values: Scores, float [n].
        ablations: Ablations of n components.
        curvature: That of the scores, where they have one.

    Returns:
        float64 [len(ablations)].
    """
    values = values.double()
    changes = []
    for ablation in ablations:
        lost = 1 - ablation.factors
        change = -(values[ablation.indices] * lost).sum()
        changes.append(change if curvature is None else change + curvature.change(ablation))
    return torch.stack(changes)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return Pearson's r along the last dimension; NaN where one side does not vary."""
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


def _slope(a: Tensor, b: Tensor) -> Tensor:
    """The least-squares slope of b on a, along the last dimension."""
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    return (a * b).sum(-1) / a.square().sum(-1)


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 0, ties sharing their mean."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0)
    return ((ends - counts + ends - 1).double() / 2)[inverse]


def _interval(resampled: Tensor) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low, high = resampled[resampled.isfinite()].quantile(torch.tensor([tail, 1 - tail], dtype=resampled.dtype)).tolist()
    return low, high


def trust_lines(scores: Scores) -> list[str]:
    """Return in words how far the scores say to trust them."""
    lines = [str(Trust.from_dict(check)) for check in scores.trust]
    facts = scores.provenance.get("estimate", {})
    if (reliability := facts.get("reliability")) is not None:
        twice = facts["reliability_with_twice_the_passes"]
        lines.append(
            f"reliability {reliability:.2f} over the choice of ablations; twice the passes would give {twice:.2f}"
        )
        # Noise of the scores weakens r by the root of their reliability (Spearman 1904).
        for check in scores.trust:
            if 0 < reliability:
                best = min(1.0, check["pearson"] / reliability**0.5)
                lines.append(f"with endless passes r at {check['fraction']:.0%} would be about {best:.2f}")
    if (stopped := scores.provenance.get("stop_when")) is not None:
        lines.append(f"stopped: {stopped['reason']}")
    return lines
