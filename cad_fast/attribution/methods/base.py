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
