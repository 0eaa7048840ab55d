"""Gradients at randomly ablated networks, several ablations in one pass of the denoiser.

Balanced partitions hold every component exactly once each, so that 1 / fraction forward and backward passes give the
mean gradient of every component where it is kept and where it is removed (see ``gradients.averages``).
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
from ..gradients.averages import Averaged, Averages, more_passes
from ..measuring.passes import gather, objective_of, repeated
from ..measuring.plans import GradientPlan
from ..measuring.reached import require_differentiable, require_reached
from ..regression.draws import parts_of
from ..stop import Watch
from ..store import RunState
from .base import Estimate, Estimator, Problem


@dataclass(frozen=True)
class AblatedGradient(Estimator):
    """Gradients at randomly ablated networks; see ``ablated_gradient_scores``.

    Args:
        fraction: The share of the components that an ablation removes.
        partitions: How many balanced partitions are run, at most: ``stop_when`` may end the run earlier.
        ablated_weight: How much the gradients count where a component is removed, from 0 to 1. None for the least
            error.
        seed: Draws other ablations.
    """

    name = "ablated_gradient"
    rows_per_pass = 32
    fraction: float = 0.05
    partitions: int = 1
    ablated_weight: float | None = None
    seed: int = 0

    def run(self, problem: Problem) -> Estimate:
        denoiser, recording, objective, space = problem.arguments()
        averaged, done = ablated_gradient_scores(
            denoiser, recording, objective, space, **self.config(), watch=problem.watch, **problem.keywords()
        )
        facts: dict[str, Any] = {"partitions": done, "ablated_weight": averaged.ablated_weight}
        if averaged.reliability is not None:
            twice = more_passes(averaged.reliability, 2)
            facts |= {"reliability": averaged.reliability, "reliability_with_twice_the_passes": twice}
        return Estimate(averaged.values, averaged.standard_error, facts, self._passes(problem, done))

    def cost(self, problem: Problem) -> dict[str, int]:
        return self._passes(problem, self.partitions)

    def _passes(self, problem: Problem, partitions: int) -> dict[str, int]:
        passes = partitions * problem.gradient_plan().cost(parts_of(self.fraction, problem.space.n))
        return {"forward": passes, "backward": passes}


def ablated_gradient_scores(
    denoiser: nn.Module,
    recording: Recording,
    objective: Objective,
    space: ComponentSpace,
    *,
    fraction: float = AblatedGradient.fraction,
    partitions: int = AblatedGradient.partitions,
    ablated_weight: float | None = AblatedGradient.ablated_weight,
    seed: int = AblatedGradient.seed,
    rows_per_pass: int = AblatedGradient.rows_per_pass,
    state: RunState | None = None,
    watch: Watch | None = None,
    progress: bool = True,
) -> tuple[Averaged, int]:
    """Score components by gradients at balanced partitions: round(1 / fraction) disjoint ablations each.

    Cost: ``GradientPlan.cost`` forward and backward passes per partition.

    Args:
        denoiser: The module whose components are scored.
        recording: Calls of this denoiser.
        objective: J.
        space: The components.
        fraction: The share of the components that an ablation removes.
        partitions: How many partitions are run, at most.
        ablated_weight: How much the gradients count where a component is removed, from 0 to 1. 0.5 is the trapezoid
            rule; None is the weight of least error.
        seed: Draws other ablations.
        rows_per_pass: How many rows go through the denoiser at once, at most.
        state: Where the sums are kept. None for nowhere.
        watch: May end the run after any partition.
        progress: Whether to show a progress bar.

    Returns:
        The scores, and how many partitions were run.

    Raises:
        ValueError: ``fraction`` is not in (0, 0.5] or gives more ablations than components, or another option is out
            of range.
    """
    parts = parts_of(fraction, space.n)
    if partitions < 1:
        raise ValueError(f"partitions is {partitions}, expected at least 1")
    if ablated_weight is not None and not 0 <= ablated_weight <= 1:
        raise ValueError(f"ablated_weight is {ablated_weight}, expected 0 to 1, or None")
    plan = GradientPlan.of(recording, objective, rows_per_pass)
    per_group = len(plan.passes)
    groups_each = -(-parts // plan.variants)
    state = state or RunState(None, {}, resume=False)
    watch = watch or Watch()
    modules = space.modules(denoiser)
    require_differentiable(modules)
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
            if number == done:
                silent = {name: modules[name] for name in sums.silent()}
                if silent:
                    require_reached(denoiser, gather(recording, plan.passes[0]), silent)
            averaged = sums.averaged((number + 1) * (parts - 1), number + 1, plan.n_rows, ablated_weight)
            if watch.enough(averaged.values[None], averaged.standard_error, 2 * (number + 1) * parts * plan.n_rows):
                break
            bar.set_postfix(watch.shown(), refresh=False)
    return averaged, number + 1


def gradient_at_ablations(
    denoiser: nn.Module,
    recording: Recording,
    objective: Objective,
    space: ComponentSpace,
    ablations: Sequence[Ablation],
    weights: Sequence[float],
    *,
    rows_per_pass: int = AblatedGradient.rows_per_pass,
) -> Tensor:
    """Average dJ/dm_i over ablated networks with these weights; float32 [n].

    Raises:
        ValueError: There are not as many weights as ablations.
    """
    if len(weights) != len(ablations):
        raise ValueError(f"got {len(ablations)} ablations and {len(weights)} weights")
    plan = GradientPlan.of(recording, objective, max(1, rows_per_pass // len(ablations)))
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
