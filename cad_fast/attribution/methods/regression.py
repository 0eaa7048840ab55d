"""A linear fit of J on random ablations (COAR, arXiv 2404.11534)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...choices import DRAWS, SOLVERS, Draw, Solver
from ..measuring.plans import ROWS_PER_PASS
from ..regression.draws import Drawn, parts_of
from ..regression.solvers import Fit, fit_all
from ..scores import Scores
from .base import Estimate, Problem, SharingEstimator

# A regression sees whether to stop after every so many ablations.
STOP_BATCH = 100


@dataclass(frozen=True)
class Regression(SharingEstimator):
    """A linear fit of J on random ablations; see ``solvers.fit_all``.

    Args:
        ablations: How many ablations are measured, at most: ``stop_when`` may end the run earlier.
        fraction: The share of the components that an ablation removes.
        draw: "partitions" for balanced ones, or "bernoulli" for every component with probability ``fraction``, as in
            COAR.
        solver: "ridge", "ols", "lasso" or "lsmr".
        prior: Scores of the same concept; their residual is fitted.
        seed: Draws other ablations.

    Raises:
        ValueError: An option is out of range or unknown.
    """

    name = "regression"
    rows_per_pass = ROWS_PER_PASS
    ablations: int = 1000
    fraction: float = 0.05
    draw: Draw = "partitions"
    solver: Solver = "ridge"
    prior: Scores | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ValueError(f"unknown solver {self.solver!r}: expected one of {', '.join(SOLVERS)}")
        if self.draw not in DRAWS:
            raise ValueError(f"unknown draw {self.draw!r}: expected 'partitions' or 'bernoulli'")
        if self.ablations < 3:
            raise ValueError(f"ablations is {self.ablations}, expected at least 3")

    def drawn(self, n: int) -> Drawn:
        """Draw the ablations of n components. Raises ValueError for a fraction that does not suit them."""
        if self.draw == "partitions":
            parts_of(self.fraction, n)
        return Drawn(self.draw, n, self.fraction, self.seed, self.ablations)

    def run_all(self, problem: Problem) -> list[Estimate]:
        if self.prior is not None and self.prior.space != problem.space:
            raise ValueError(f"prior has scores over {self.prior.space}, expected {problem.space}")
        if self.prior is not None and len(problem.targets) > 1:
            raise ValueError("prior: scores of one concept cannot be what is known of many")
        drawn = self.drawn(problem.space.n)
        priors = [None if self.prior is None else self.prior.values] * len(problem.targets)
        plan = problem.measuring_plan()

        def until(j: Tensor) -> bool:
            # Groups of ablations may step over a multiple of the batch.
            count = j.shape[1]
            if count // STOP_BATCH == max(0, count - plan.variants) // STOP_BATCH:
                return False
            design = drawn.design(count, in_memory=self.solver != "lsmr")
            alpha = torch.stack([one.alpha for one in fit_all(design, j, self.solver, priors=priors)])
            return problem.watch.enough(alpha, None, count * plan.rows)

        j = problem.objectives_under(drawn, None if problem.watch.stop is None else until)
        count = j.shape[1]
        # Errors of each component take the square of the ablations per component: not for millions of weights.
        small = self.solver in ("ridge", "ols") and problem.space.n * count**2 < 2e12
        design = drawn.design(count, in_memory=self.solver != "lsmr")
        fits = fit_all(design, j, self.solver, priors=priors, standard_errors=small)
        passes = {"forward": plan.cost(count), "backward": 0}
        return [
            Estimate(fit.alpha, fit.standard_error, self._facts(fit, of_target), passes)
            for fit, of_target in zip(fits, j, strict=True)
        ]

    def _facts(self, fit: Fit, j: Tensor) -> dict[str, Any]:
        facts: dict[str, Any] = {"penalty": fit.penalty, "prior_scale": fit.prior_scale}
        if fit.loo is not None:
            facts["leave_one_out_r"] = float(torch.corrcoef(torch.stack([fit.loo, j]))[0, 1])
        return {**facts, "ablations": len(j)}

    def cost(self, problem: Problem) -> dict[str, int]:
        return {"forward": problem.measuring_plan().cost(self.ablations), "backward": 0}
