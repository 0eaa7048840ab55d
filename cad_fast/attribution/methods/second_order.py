"""Gradients of single rows at randomly ablated networks: scores of single weights, and how J bends."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Estimate, Estimator, Problem
from .second_order_scores import SecondOrderPlan, second_order_scores


@dataclass(frozen=True)
class SecondOrder(Estimator):
    """Gradients of single rows at randomly ablated networks: scores, and how J bends; see ``second_order_scores``."""

    name = "second_order"
    rows_per_pass = 32
    fraction: float = 0.05
    networks: int = 20
    directions: int = 128
    seed: int = 0

    def run(self, problem: Problem) -> Estimate:
        found = second_order_scores(*problem.arguments(), **self.config(), **problem.keywords())
        each = found.plan.networks
        facts = {"rows": found.plan.rows, "networks": [min(each), max(each)], "stretch": found.stretch}
        return Estimate(found.values, None, facts, self._passes(found.plan), found.curvature)

    def cost(self, problem: Problem) -> dict[str, int]:
        plan = SecondOrderPlan.of(problem.recording, problem.objective, self.networks, problem.rows_per_pass)
        return self._passes(plan)

    @staticmethod
    def _passes(plan: SecondOrderPlan) -> dict[str, int]:
        return {"forward": len(plan.passes), "backward": len(plan.passes)}
