"""The interface of all methods: the problem they get, the estimate they give, their cost."""

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
from ..measuring.plans import GradientPlan, MeasuringPlan, Target
from ..scores import Scores
from ..stop import Watch
from ..store import RunState


@dataclass(frozen=True)
class Problem:
    """What an estimator is to solve, and how to run it.

    Args:
        denoiser: The module whose components are scored.
        targets: What is measured on which recording, one per concept.
        space: The components.
        rows_per_pass: How many rows go through the denoiser at once, at most.
        state: Where what is done is kept.
        watch: May end the estimate early.
        progress: Whether to show progress bars.
        executor: As for ``measure_all``.
        workers: As for ``measure_all``.
    """

    denoiser: nn.Module
    targets: tuple[Target, ...]
    space: ComponentSpace
    rows_per_pass: int
    state: RunState
    watch: Watch
    progress: bool
    executor: Executor
    workers: int | None

    @property
    def recording(self) -> Recording:
        return self.targets[0].recording

    @property
    def objective(self) -> Objective:
        return self.targets[0].objective

    def keywords(self) -> dict[str, Any]:
        """Return how an estimate is run, as keyword arguments."""
        return {"rows_per_pass": self.rows_per_pass, "state": self.state, "progress": self.progress}

    def arguments(self) -> tuple[nn.Module, Recording, Objective, ComponentSpace]:
        """Return what an estimate of the first target is made of, as positional arguments."""
        return self.denoiser, self.recording, self.objective, self.space

    def gradient_plan(self) -> GradientPlan:
        """Divide the rows of the first target's recording into passes."""
        return GradientPlan.of(self.recording, self.objective, self.rows_per_pass)

    def measuring_plan(self, *, share: bool = False) -> MeasuringPlan:
        """Divide the rows of all targets into passes."""
        return MeasuringPlan.of(self.targets, self.rows_per_pass, share=share)

    def objectives_under(
        self,
        ablations: Sequence[Ablation],
        until: Callable[[Tensor], bool] | None = None,
        *,
        share: bool = False,
    ) -> Tensor:
        """Measure J under each ablation; float64 [targets, len(ablations)].

        Stops early when ``until(j)`` returns True, for J [targets, k] of the first k ablations. ``share`` as for
        ``Measurer``.
        """
        measurer = Measurer(self.denoiser, self.targets, self.space, self.rows_per_pass, share=share)
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
    """What an estimator gives.

    Args:
        values: The scores, float [n].
        standard_error: float [n], or None where it is unknown.
        facts: What the estimate knows of itself, as JSON.
        passes: As ``Estimator.cost``, where the run knows them.
        curvature: How J bends besides, where the method knows.
    """

    values: Tensor
    standard_error: Tensor | None
    facts: dict[str, Any]
    passes: dict[str, int] | None = None
    curvature: Curvature | None = None


class Estimator(ABC):
    """A method, with its options as fields."""

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
        """Return how many passes of at most ``problem.rows_per_pass`` rows it takes, as {"forward": , "backward": }."""

    def config(self) -> dict[str, Any]:
        """Return the options as JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {
            key: {"concept": value.concept, "method": value.provenance.get("method")}
            if isinstance(value, Scores)
            else value
            for key, value in values.items()
        }


class SharingEstimator(Estimator):
    """A method that only measures J under ablations, so that the same passes serve many targets."""

    @abstractmethod
    def run_all(self, problem: Problem) -> list[Estimate]:
        """Estimate the scores of every target."""

    def run(self, problem: Problem) -> Estimate:
        return self.run_all(problem)[0]
