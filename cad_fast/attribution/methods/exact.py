"""Each component ablated alone: the yardstick."""

from __future__ import annotations

from dataclasses import dataclass

from ...components.ablation import Ablation
from ..measuring.plans import ROWS_PER_PASS
from .base import Estimate, Problem, SharingEstimator

MOST_EXACT = 20_000


@dataclass(frozen=True)
class Exact(SharingEstimator):
    """alpha_i = J of the intact network less J without component i: one ablation per component.

    What the denoiser computes before a pass's first ablated layer is computed once for all of its ablations.
    """

    name = "exact"
    rows_per_pass = ROWS_PER_PASS

    def run_all(self, problem: Problem) -> list[Estimate]:
        n = problem.space.n
        if n > MOST_EXACT:
            raise ValueError(
                f"exact takes one ablation per component, here {n}: more than {MOST_EXACT} are refused; restrict "
                "target_modules, choose a coarser kind, or use method='ablated_gradient'"
            )
        alone = [Ablation.from_indices(n, [number]) for number in range(n)]
        every = problem.objectives_under([*alone, Ablation.from_indices(n, [])], share=True)
        return [Estimate(j[-1] - j[:-1], None, {"intact_j": float(j[-1])}) for j in every]

    def cost(self, problem: Problem) -> dict[str, int]:
        return {"forward": problem.measuring_plan(share=True).cost(problem.space.n + 1), "backward": 0}
