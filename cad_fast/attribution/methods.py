"""The ways to estimate scores behind one interface: what each is told, what it costs, and how it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..ablation import Ablation
from ..components import ComponentSpace
from ..objectives import Objective
from ..recording_data import Recording
from .ablated import Plan, ablated_gradient_scores, objective_under_ablations, parts_of
from .averages import more_passes
from .gradient import Via, gradient_scores
from .scores import Scores
from .solvers import SOLVERS, Design, Solver, fit
from .stop import Watch
from .store import RunState

Method = Literal["gradient", "ablated_gradient", "regression", "exact"]
Draw = Literal["partitions", "bernoulli"]
MOST_EXACT = 20_000
# A regression looks up whether to stop after every so many ablations.
STOP_BATCH = 100


@dataclass(frozen=True)
class Job:
    """One attribution: the denoiser, what it is attributed on, and how it is run."""

    denoiser: nn.Module
    recording: Recording
    objective: Objective
    space: ComponentSpace
    rows_per_pass: int
    state: RunState
    progress: bool
    watch: Watch

    def settings(self) -> dict[str, Any]:
        """How every estimate is run, as keyword arguments."""
        return {"rows_per_pass": self.rows_per_pass, "state": self.state, "progress": self.progress}

    def what(self) -> tuple[nn.Module, Recording, Objective, ComponentSpace]:
        """What every estimate is made of, as positional arguments."""
        return self.denoiser, self.recording, self.objective, self.space

    def plan(self) -> Plan:
        """How the recording's rows are divided into passes."""
        return Plan.of(self.recording, self.objective, self.rows_per_pass)

    def objective_under(self, ablations: Sequence[Ablation], until: Callable[[Tensor], bool] | None = None) -> Tensor:
        """J float64 [len(ablations)] under each ablation, or under those until ``until`` is content."""
        return objective_under_ablations(*self.what(), ablations, until=until, **self.settings())


@dataclass(frozen=True)
class Estimate:
    """Scores float [n], what is known of their errors (float [n] or None), and JSON-able facts about the estimate.

    ``passes`` as of ``Estimator.cost``, where fewer were made than it foresaw.
    """

    values: Tensor
    standard_error: Tensor | None
    facts: dict[str, Any]
    passes: dict[str, int] | None = None


class Estimator(ABC):
    """One method, with its options as fields."""

    name: ClassVar[Method]
    rows_per_pass: ClassVar[int] = 16

    @abstractmethod
    def run(self, job: Job) -> Estimate:
        """Estimate the scores."""

    @abstractmethod
    def cost(self, job: Job) -> dict[str, int]:
        """Passes of the denoiser over ``job.rows_per_pass`` rows at most: {"forward": ..., "backward": ...}."""

    def config(self) -> dict[str, Any]:
        """The options as JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {
            key: {"concept": value.concept, "method": value.provenance.get("method")}
            if isinstance(value, Scores)
            else value
            for key, value in values.items()
        }


@dataclass(frozen=True)
class Gradient(Estimator):
    """alpha_i = w_i dJ/dw_i at the intact network (arXiv 2412.02542, equation 5)."""

    name = "gradient"
    via: Via | None = None

    def run(self, job: Job) -> Estimate:
        """See ``gradient_scores``."""
        return Estimate(gradient_scores(*job.what(), via=self.via, **job.settings()), None, {})

    def cost(self, job: Job) -> dict[str, int]:
        passes = len(job.plan().passes)
        return {"forward": passes, "backward": passes}


@dataclass(frozen=True)
class AblatedGradient(Estimator):
    """Gradients at randomly ablated networks; see ``ablated_gradient_scores``.

    ``partitions`` is the most that are run: ``stop_when`` may end the run earlier.
    """

    name = "ablated_gradient"
    rows_per_pass = 32
    fraction: float = 0.05
    partitions: int = 1
    ablated_weight: float | None = None
    seed: int = 0

    def run(self, job: Job) -> Estimate:
        options = {key: getattr(self, key) for key in ("fraction", "partitions", "ablated_weight", "seed")}
        found, done = ablated_gradient_scores(*job.what(), **options, watch=job.watch, **job.settings())
        facts: dict[str, Any] = {"partitions": done, "ablated_weight": found.ablated_weight}
        if found.reliability is not None:
            twice = more_passes(found.reliability, 2)
            facts |= {"reliability": found.reliability, "reliability_with_twice_the_passes": twice}
        return Estimate(found.values, found.standard_error, facts, self._passes(job, done))

    def cost(self, job: Job) -> dict[str, int]:
        return self._passes(job, self.partitions)

    def _passes(self, job: Job, partitions: int) -> dict[str, int]:
        passes = partitions * job.plan().cost(parts_of(self.fraction, job.space.n))
        return {"forward": passes, "backward": passes}


@dataclass(frozen=True)
class Regression(Estimator):
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
        if self.draw not in ("partitions", "bernoulli"):
            raise ValueError(f"unknown draw {self.draw!r}: expected 'partitions' or 'bernoulli'")
        if self.ablations < 3:
            raise ValueError(f"ablations is {self.ablations}, expected at least 3")

    def drawn(self, n: int) -> list[Ablation]:
        """The ablations of n components."""
        if self.draw == "bernoulli":
            return [Ablation.random(n, self.fraction, self.seed + number) for number in range(self.ablations)]
        parts = parts_of(self.fraction, n)
        whole: list[Ablation] = []
        for number in range(-(-self.ablations // parts)):
            whole += Ablation.balanced_partition(n, parts, self.seed + number)
        return whole[: self.ablations]

    def run(self, job: Job) -> Estimate:
        if self.prior is not None and self.prior.space != job.space:
            raise ValueError(f"prior has scores over {self.prior.space}, expected {job.space}")
        ablations = self.drawn(job.space.n)
        prior = None if self.prior is None else self.prior.values
        plan = job.plan()

        def until(j: Tensor) -> bool:
            # Groups of ablations may step over a multiple of the batch.
            if len(j) // STOP_BATCH == max(0, len(j) - plan.variants) // STOP_BATCH:
                return False
            found = fit(Design.of(ablations[: len(j)]), j, self.solver, prior=prior)
            return job.watch.enough(found.alpha, None, len(j) * plan.n_rows)

        j = job.objective_under(ablations, None if job.watch.stop is None else until)
        ablations = ablations[: len(j)]
        # Errors of each component take the square of the ablations per component: not for millions of weights.
        small = self.solver != "lasso" and job.space.n * len(ablations) ** 2 < 2e12
        found = fit(Design.of(ablations), j, self.solver, prior=prior, standard_errors=small)
        facts: dict[str, Any] = {"penalty": found.penalty, "prior_scale": found.prior_scale}
        if found.loo is not None:
            facts["leave_one_out_r"] = float(torch.corrcoef(torch.stack([found.loo, j]))[0, 1])
        facts["ablations"] = len(ablations)
        passes = {"forward": plan.cost(len(ablations)), "backward": 0}
        return Estimate(found.alpha, found.standard_error, facts, passes)

    def cost(self, job: Job) -> dict[str, int]:
        return {"forward": job.plan().cost(self.ablations), "backward": 0}


@dataclass(frozen=True)
class Exact(Estimator):
    """alpha_i = J of the intact network less J without component i: one forward pass per component, the yardstick."""

    name = "exact"
    rows_per_pass = 64

    def run(self, job: Job) -> Estimate:
        n = job.space.n
        if n > MOST_EXACT:
            raise ValueError(
                f"exact takes one ablation per component, here {n}: more than {MOST_EXACT} are refused; restrict "
                "target_modules, choose a coarser kind, or use method='ablated_gradient'"
            )
        alone = [Ablation.from_indices(n, [number]) for number in range(n)]
        j = job.objective_under([*alone, Ablation.from_indices(n, [])])
        return Estimate(j[-1] - j[:-1], None, {"intact_j": float(j[-1])})

    def cost(self, job: Job) -> dict[str, int]:
        return {"forward": job.plan().cost(job.space.n + 1), "backward": 0}


ESTIMATORS: dict[str, type[Estimator]] = {cls.name: cls for cls in (Gradient, AblatedGradient, Regression, Exact)}
METHODS: tuple[Method, ...] = tuple(ESTIMATORS)  # type: ignore[assignment]


def make_estimator(method: str, options: dict[str, Any]) -> Estimator:
    """Raises ValueError for an unknown method, TypeError naming an option that it does not have."""
    if method not in ESTIMATORS:
        raise ValueError(f"unknown method {method!r}: expected one of {', '.join(ESTIMATORS)}")
    kind = ESTIMATORS[method]
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    unknown = [key for key in options if key not in known]
    if unknown:
        raise TypeError(f"method {method!r} has no option {unknown[0]!r}; it has: {', '.join(known) or 'none'}")
    return kind(**options)
