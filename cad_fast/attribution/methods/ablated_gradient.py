"""Gradients at randomly ablated networks, several ablations in one pass of the denoiser.

Balanced partitions hold every component exactly once each, so that 1 / fraction forward and backward passes give the
mean gradient of every component where it is kept and where it is removed (see ``averages``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ...components.ablation import Ablation
from ...components.space import ComponentSpace
from ...diffusion.context import only_gradients_of
from ...objectives import Objective
from ...recording.data import Recording
from ...row_engine.engine import Gradients, rows
from ..measuring.passes import gather, objective_of, repeated
from ..measuring.plans import Plan
from ..regression.draws import parts_of
from ..stop import Watch
from ..store import RunState
from .averages import Averaged, Averages, more_passes
from .base import Estimate, Estimator, Problem


def ablated_gradient_scores(
    denoiser: nn.Module,
    recording: Recording,
    objective: Objective,
    space: ComponentSpace,
    *,
    fraction: float = 0.05,
    partitions: int = 1,
    ablated_weight: float | None = None,
    seed: int = 0,
    rows_per_pass: int = 32,
    state: RunState | None = None,
    watch: Watch | None = None,
    progress: bool = True,
) -> tuple[Averaged, int]:
    """Scores from gradients at ``partitions`` times round(1 / fraction) disjoint ablations, and the partitions done.

    ``ablated_weight``: how much the gradients where a component is removed count, from 0 to 1 (0.5 is the trapezoid
    rule); None for the least error. ``watch`` may end the run after any partition.
    Cost: ``Plan.cost`` forward and backward passes.
    Raises ValueError when fraction is not in (0, 0.5] or gives more ablations than components.
    """
    parts = parts_of(fraction, space.n)
    if partitions < 1:
        raise ValueError(f"partitions is {partitions}, expected at least 1")
    if ablated_weight is not None and not 0 <= ablated_weight <= 1:
        raise ValueError(f"ablated_weight is {ablated_weight}, expected 0 to 1, or None")
    plan = Plan.of(recording, objective, rows_per_pass)
    per_group = len(plan.passes)
    groups_each = -(-parts // plan.variants)
    state = state or RunState(None, {}, resume=False)
    watch = watch or Watch()
    sums = Averages(space, denoiser, state.sums)
    kind: Gradients = "scores" if space.kind == "weight" else "gates"
    done = min(state.done // (groups_each * per_group), partitions - 1)
    total = partitions * groups_each * per_group
    bar = tqdm(total=total, initial=state.done, desc="ablated gradient", unit="pass", disable=not progress)
    with bar, only_gradients_of(denoiser, []), torch.enable_grad():
        for number in range(done, partitions):
            drawn = Ablation.balanced_partition(space.n, parts, seed + number)
            for which, (_, group) in enumerate(plan.groups(drawn)):
                begin = (number * groups_each + which) * per_group
                if state.done >= begin + per_group:
                    continue
                with rows(denoiser, group, space, gradients=kind) as engine:
                    for place in range(max(0, state.done - begin), per_group):
                        call = repeated(gather(recording, plan.passes[place]), len(group))
                        _, values = objective_of(denoiser, recording, objective, plan.passes[place], call)
                        sums.add(engine, values.sum(), group)
                        if place == per_group - 1:
                            sums.close(group)
                        state.update(begin + place + 1, sums.tensors)
                        bar.update()
            found = sums.averaged((number + 1) * (parts - 1), number + 1, plan.n_rows, ablated_weight)
            if watch.enough(found.values[None], found.standard_error, 2 * (number + 1) * parts * plan.n_rows):
                break
            bar.set_postfix(watch.shown(), refresh=False)
    return found, number + 1


def gradient_at_ablations(
    denoiser: nn.Module,
    recording: Recording,
    objective: Objective,
    space: ComponentSpace,
    ablations: Sequence[Ablation],
    weights: Sequence[float],
    *,
    rows_per_pass: int = 32,
) -> Tensor:
    """dJ/dm_i at each of the ablated networks, averaged with these weights; float32 [n].

    Raises ValueError when there are not as many weights as ablations.
    """
    if len(weights) != len(ablations):
        raise ValueError(f"got {len(ablations)} ablations and {len(weights)} weights")
    plan = Plan.of(recording, objective, max(1, rows_per_pass // len(ablations)))
    sums = Averages(space, denoiser, {})
    gradients: Gradients = "scores" if space.kind == "weight" else "gates"
    with only_gradients_of(denoiser, []), rows(denoiser, ablations, space, gradients=gradients) as engine:
        for pieces in plan.passes:
            with torch.enable_grad():
                call = repeated(gather(recording, pieces), len(ablations))
                values = objective_of(denoiser, recording, objective, pieces, call)[1].view(len(ablations), -1)
                share = torch.tensor(list(weights), device=values.device, dtype=values.dtype) / sum(weights)
                sums.add(engine, (values.sum(1) * share).sum(), ablations)
    return ((sums.tensors["kept"] + sums.tensors["ablated"]) / plan.n_rows).cpu()


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

    def run(self, problem: Problem) -> Estimate:
        found, done = ablated_gradient_scores(
            *problem.arguments(), **self.config(), watch=problem.watch, **problem.keywords()
        )
        facts: dict[str, Any] = {"partitions": done, "ablated_weight": found.ablated_weight}
        if found.reliability is not None:
            twice = more_passes(found.reliability, 2)
            facts |= {"reliability": found.reliability, "reliability_with_twice_the_passes": twice}
        return Estimate(found.values, found.standard_error, facts, self._passes(problem, done))

    def cost(self, problem: Problem) -> dict[str, int]:
        return self._passes(problem, self.partitions)

    def _passes(self, problem: Problem, partitions: int) -> dict[str, int]:
        passes = partitions * problem.plan().cost(parts_of(self.fraction, problem.space.n))
        return {"forward": passes, "backward": passes}
