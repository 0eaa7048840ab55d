"""A linear fit of J on random ablations (COAR, arXiv 2404.11534)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...choices import DRAWS, SOLVERS, Draw, Solver
from ..regression.draws import Drawn, parts_of
from ..regression.solvers import Fit, fit_all
from ..scores import Scores
from .base import Estimate, Job, SharingEstimator

# A regression looks up whether to stop after every so many ablations.
STOP_BATCH = 100


@dataclass(frozen=True)
class Regression(SharingEstimator):
    """A linear fit of J on random ablations (COAR, arXiv 2404.11534); see ``solvers.fit``.

    ``draw``: balanced partitions, or every component with probability ``fraction`` as in COAR. ``prior``: scores whose
    residual is fitted.
    """

    name = "regression"
    rows_per_pass = 64
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
        """The ablations of n components. Raises ValueError for a fraction that does not suit them."""
        if self.draw == "partitions":
            parts_of(self.fraction, n)
        return Drawn(self.draw, n, self.fraction, self.seed, self.ablations)

    def run_all(self, job: Job) -> list[Estimate]:
        if self.prior is not None and self.prior.space != job.space:
            raise ValueError(f"prior has scores over {self.prior.space}, expected {job.space}")
        if self.prior is not None and len(job.targets) > 1:
            raise ValueError("prior: scores of one concept cannot be what is known of many")
        drawn = self.drawn(job.space.n)
        priors = [None if self.prior is None else self.prior.values] * len(job.targets)
        plan = job.measure_plan()

        def until(j: Tensor) -> bool:
            # Groups of ablations may step over a multiple of the batch.
            count = j.shape[1]
            if count // STOP_BATCH == max(0, count - plan.variants) // STOP_BATCH:
                return False
            design = drawn.design(count, in_memory=self.solver != "lsmr")
            alpha = torch.stack([found.alpha for found in fit_all(design, j, self.solver, priors=priors)])
            return job.watch.enough(alpha, None, count * plan.rows)

        j = job.objectives_under(drawn, None if job.watch.stop is None else until)
        count = j.shape[1]
        # Errors of each component take the square of the ablations per component: not for millions of weights.
        small = self.solver in ("ridge", "ols") and job.space.n * count**2 < 2e12
        design = drawn.design(count, in_memory=self.solver != "lsmr")
        fits = fit_all(design, j, self.solver, priors=priors, standard_errors=small)
        passes = {"forward": plan.cost(count), "backward": 0}
        return [
            Estimate(found.alpha, found.standard_error, self._facts(found, one), passes)
            for found, one in zip(fits, j, strict=True)
        ]

    def _facts(self, found: Fit, j: Tensor) -> dict[str, Any]:
        facts: dict[str, Any] = {"penalty": found.penalty, "prior_scale": found.prior_scale}
        if found.loo is not None:
            facts["leave_one_out_r"] = float(torch.corrcoef(torch.stack([found.loo, j]))[0, 1])
        return {**facts, "ablations": len(j)}

    def cost(self, job: Job) -> dict[str, int]:
        return {"forward": job.measure_plan().cost(self.ablations), "backward": 0}
