"""What every method is told, what it answers, and what it costs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import Tensor, nn

from ...choices import Method
from ...components.ablation import Ablation
from ...components.space import ComponentSpace
from ...objectives import Objective
from ...recording.data import Recording
from ..curvature import Curvature
from ..measuring.measure import Executor, measure_all
from ..measuring.measurer import Measurer
from ..measuring.plans import MeasurePlan, Plan, Target
from ..scores import Scores
from ..stop import Watch
from ..store import RunState


@dataclass(frozen=True)
class Problem:
    """What an estimator is to solve: the denoiser, its components, one target or several, and how to run it."""

    denoiser: nn.Module
    targets: tuple[Target, ...]
    space: ComponentSpace
    rows_per_pass: int
    state: RunState
    watch: Watch
    progress: bool = True
    executor: Executor = "local"
    workers: int | None = None

    @property
    def recording(self) -> Recording:
        return self.targets[0].recording

    @property
    def objective(self) -> Objective:
        return self.targets[0].objective

    def keywords(self) -> dict[str, Any]:
        """Return how every estimate is run, as keyword arguments."""
        return {"rows_per_pass": self.rows_per_pass, "state": self.state, "progress": self.progress}

    def arguments(self) -> tuple[nn.Module, Recording, Objective, ComponentSpace]:
        """Return what every estimate of one target is made of, as positional arguments."""
        return self.denoiser, self.recording, self.objective, self.space

    def plan(self) -> Plan:
        """How the recording's rows are divided into passes."""
        return Plan.of(self.recording, self.objective, self.rows_per_pass)

    def measure_plan(self) -> MeasurePlan:
        """How the rows of all targets are divided into passes."""
        return MeasurePlan.of(self.targets, self.rows_per_pass)

    def objectives_under(self, ablations: Sequence[Ablation], until: Callable[[Tensor], bool] | None = None) -> Tensor:
        """Measure J under each ablation; float64 [targets, len(ablations)].

        Stops early when ``until(j)`` returns True, for J [targets, k] of the first k ablations.
        """
        measurer = Measurer(self.denoiser, self.targets, self.space, self.rows_per_pass)
        return measure_all(
            measurer,
            ablations,
            state=self.state,
            until=until,
            progress=self.progress,
            executor=self.executor,
            workers=self.workers,
        )


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
    def run(self, problem: Problem) -> Estimate:
        """Estimate the scores of the first target."""

    def run_all(self, problem: Problem) -> list[Estimate]:
        """Estimate the scores of every target. Raises ValueError for several where the method takes one."""
        if len(problem.targets) > 1:
            raise ValueError(f"method {self.name!r} takes one target at a time, got {len(problem.targets)}")
        return [self.run(problem)]

    @abstractmethod
    def cost(self, problem: Problem) -> dict[str, int]:
        """Passes of the denoiser over ``problem.rows_per_pass`` rows at most: {"forward": ..., "backward": ...}."""

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
    def run_all(self, problem: Problem) -> list[Estimate]:
        """Estimate the scores of every target."""

    def run(self, problem: Problem) -> Estimate:
        return self.run_all(problem)[0]
