"""The ways to estimate scores behind one interface: what each is told, what it costs, and how it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..ablation import Ablation
from ..choices import DRAWS, SOLVERS, Draw, Executor, Kind, Method, Solver
from ..components import ComponentSpace
from ..objectives import Objective
from ..recording_data import Recording
from .ablated import Plan, ablated_gradient_scores
from .averages import more_passes
from .curvature import Curvature
from .draws import Drawn, parts_of
from .gradient import Via, gradient_scores
from .measure import MeasurePlan, Measurer, Target, measure_all
from .scores import Scores
from .second_order import SecondOrderPlan, second_order_scores
from .sensitivity import output_sensitivity
from .solvers import Fit, fit_all
from .stop import Watch
from .store import RunState

MOST_EXACT = 20_000
# A regression looks up whether to stop after every so many ablations.
STOP_BATCH = 100


@dataclass(frozen=True)
class Job:
    """One attribution: the denoiser, what it is attributed on (one target, or several at once), and how it is run."""

    denoiser: nn.Module
    targets: tuple[Target, ...]
    space: ComponentSpace
    rows_per_pass: int
    state: RunState
    progress: bool
    watch: Watch
    executor: Executor = "local"
    workers: int | None = None

    @property
    def recording(self) -> Recording:
        return self.targets[0].recording

    @property
    def objective(self) -> Objective:
        return self.targets[0].objective

    def settings(self) -> dict[str, Any]:
        """How every estimate is run, as keyword arguments."""
        return {"rows_per_pass": self.rows_per_pass, "state": self.state, "progress": self.progress}

    def what(self) -> tuple[nn.Module, Recording, Objective, ComponentSpace]:
        """What every estimate is made of, as positional arguments."""
        return self.denoiser, self.recording, self.objective, self.space

    def plan(self) -> Plan:
        """How the recording's rows are divided into passes."""
        return Plan.of(self.recording, self.objective, self.rows_per_pass)

    def measure_plan(self) -> MeasurePlan:
        """How the rows of all targets are divided into passes."""
        return MeasurePlan.of(self.targets, self.rows_per_pass)

    def objectives_under(self, ablations: Sequence[Ablation], until: Callable[[Tensor], bool] | None = None) -> Tensor:
        """J float64 [targets, len(ablations)] under each ablation, or under those until ``until`` is content."""
        measurer = Measurer(self.denoiser, self.targets, self.space, self.rows_per_pass)
        how = {"executor": self.executor, "workers": self.workers, "progress": self.progress}
        return measure_all(measurer, ablations, state=self.state, until=until, **how)


@dataclass(frozen=True)
class Estimate:
    """Scores float [n], what is known of their errors (float [n] or None), and JSON-able facts about the estimate.

    ``passes`` as of ``Estimator.cost``, where the run knows them. ``curvature``: how J bends besides.
    """

    values: Tensor
    standard_error: Tensor | None
    facts: dict[str, Any]
    passes: dict[str, int] | None = None
    curvature: Curvature | None = None


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


class SharingEstimator(Estimator):
    """A method that only measures J under ablations: the same passes serve many targets."""

    @abstractmethod
    def run_all(self, job: Job) -> list[Estimate]:
        """An estimate per target."""

    def run(self, job: Job) -> Estimate:
        return self.run_all(job)[0]


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
        found, done = ablated_gradient_scores(*job.what(), **self.config(), watch=job.watch, **job.settings())
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
class SecondOrder(Estimator):
    """Gradients of single rows at randomly ablated networks: scores, and how J bends; see ``second_order_scores``."""

    name = "second_order"
    rows_per_pass = 32
    fraction: float = 0.05
    networks: int = 20
    directions: int = 128
    seed: int = 0

    def run(self, job: Job) -> Estimate:
        found = second_order_scores(*job.what(), **self.config(), **job.settings())
        each = found.plan.networks
        facts = {"rows": found.plan.rows, "networks": [min(each), max(each)], "stretch": found.stretch}
        return Estimate(found.values, None, facts, self._passes(found.plan), found.curvature)

    def cost(self, job: Job) -> dict[str, int]:
        plan = SecondOrderPlan.of(job.recording, job.objective, self.networks, job.rows_per_pass)
        return self._passes(plan)

    @staticmethod
    def _passes(plan: SecondOrderPlan) -> dict[str, int]:
        return {"forward": len(plan.passes), "backward": len(plan.passes)}


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


@dataclass(frozen=True)
class Exact(SharingEstimator):
    """alpha_i = J of the intact network less J without component i: one forward pass per component, the yardstick."""

    name = "exact"
    rows_per_pass = 64

    def run_all(self, job: Job) -> list[Estimate]:
        n = job.space.n
        if n > MOST_EXACT:
            raise ValueError(
                f"exact takes one ablation per component, here {n}: more than {MOST_EXACT} are refused; restrict "
                "target_modules, choose a coarser kind, or use method='ablated_gradient'"
            )
        alone = [Ablation.from_indices(n, [number]) for number in range(n)]
        every = job.objectives_under([*alone, Ablation.from_indices(n, [])])
        return [Estimate(j[-1] - j[:-1], None, {"intact_j": float(j[-1])}) for j in every]

    def cost(self, job: Job) -> dict[str, int]:
        return {"forward": job.measure_plan().cost(job.space.n + 1), "backward": 0}


@dataclass(frozen=True)
class Sensitivity(Estimator):
    """Not an effect on J but how far each component's removal moves the output; see ``output_sensitivity``."""

    name = "sensitivity"
    rows_per_pass = 8
    probes: int = 1
    seed: int = 0

    def run(self, job: Job) -> Estimate:
        values = output_sensitivity(
            job.denoiser,
            job.recording,
            job.objective.timesteps,
            job.space,
            probes=self.probes,
            seed=self.seed,
            **job.settings(),
        )
        return Estimate(values, None, {})

    def cost(self, job: Job) -> dict[str, int]:
        passes = len(job.plan().passes)
        return {"forward": passes, "backward": passes * self.probes}


ESTIMATORS: dict[str, type[Estimator]] = {
    cls.name: cls for cls in (Gradient, AblatedGradient, SecondOrder, Regression, Exact, Sensitivity)
}


def default_method(kind: Kind, n: int | None = None) -> Method:
    """What is used for n components of a kind where no method is asked for; docs/attribution.md has the figures.

    Single weights: the gradient, whose edits erase as well as those of the ablated gradient at a twentieth of its cost.
    Neurons, filters and heads, along which J bends: the ablated gradient; or, where there are too few to be cut into
    partitions, each ablated alone, which is cheaper still.
    """
    if kind == "weight":
        return "gradient"
    return "ablated_gradient" if n is None or n >= round(1 / AblatedGradient.fraction) else "exact"


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
