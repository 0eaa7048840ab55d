"""Random ablations of a known linear J."""

from __future__ import annotations

import torch
from torch import Tensor

from cad_fast import Ablation
from cad_fast.attribution.regression.design import Design, SeededDesign

N = 45


def truth(seed: int = 0) -> Tensor:
    return torch.randn(N, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ablations(m: int, fraction: float = 0.3, factor: float = 0.0, first: int = 0) -> list[Ablation]:
    return [Ablation.random(N, fraction, seed, factor) for seed in range(first, first + m)]


def kept(drawn: list[Ablation]) -> Tensor:
    """The design written out: what each ablation multiplies each component's weights by, [m, n]."""
    x = torch.ones(len(drawn), N, dtype=torch.float64)
    for row, ablation in enumerate(drawn):
        x[row, ablation.indices] = ablation.factors
    return x


def noisy(drawn: list[Ablation], alpha: Tensor, noise: float) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return 3 + kept(drawn) @ alpha + noise * torch.randn(len(drawn), dtype=torch.float64, generator=generator)


def random_problem(m: int, n: int, targets: int) -> tuple[Design, Tensor]:
    """Targets of different strengths, so that their best penalties differ."""
    design = Design(SeededDesign(n, 0.2, 3, m).words, n)
    alpha = torch.randn(targets, n, dtype=torch.float64) * 10.0 ** torch.arange(targets).double()[:, None].neg()
    return design, design.times(alpha) + torch.randn(targets, m, dtype=torch.float64)
