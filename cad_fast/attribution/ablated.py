"""Running a recording under many ablations, several in one pass of the denoiser: J of each, and gradients at each.

The ablated gradient is the trapezoid rule for the effect of a component at randomly ablated networks,

    alpha_i = (E[dJ/dm_i | i kept] + E[dJ/dm_i | i ablated]) / 2,

where m_i multiplies the component's weights. Ablations drawn as balanced partitions hold every component exactly once
each, so that 1 / fraction forward and backward passes give both averages for all components.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..ablation import Ablation
from ..components import ComponentSpace
from ..denoiser_calls import DenoiserCall
from ..objectives import Objective
from ..recording_data import Recording
from ..row_engine import Gradients, RowEngine, rows
from .gradient import only_gradients_of
from .passes import Pass, gather, plan_passes
from .store import RunState


@dataclass(frozen=True)
class Plan:
    """Which rows of a recording, and how many ablations, go through the denoiser together."""

    passes: list[Pass]
    variants: int
    n_rows: int

    @classmethod
    def of(cls, recording: Recording, objective: Objective, rows_per_pass: int) -> Plan:
        """As many of the recording's rows as fit, and as many ablations of them as fit then."""
        passes = plan_passes(recording, objective, rows_per_pass)
        counts = [sum(len(numbers) for _, numbers in pieces) for pieces in passes]
        return cls(passes, max(1, rows_per_pass // max(counts)), sum(counts))

    def groups(self, ablations: Sequence[Ablation]) -> list[tuple[int, Sequence[Ablation]]]:
        """The ablations in groups that run together, each with the number of its first."""
        return [(at, ablations[at : at + self.variants]) for at in range(0, len(ablations), self.variants)]

    def cost(self, ablations: int) -> int:
        """How many passes of the denoiser so many ablations take."""
        return len(self.passes) * -(-ablations // self.variants)


def repeated(call: DenoiserCall, variants: int) -> DenoiserCall:
    """The call with its rows once per variant, variant-major."""
    return call.select_rows(list(range(call.rows)) * variants) if variants > 1 else call


def _jobs(plan: Plan, groups: Sequence[tuple[int, Sequence[Ablation]]], done: int) -> Iterator[tuple[int, int, int]]:
    """(number of the job, of the group, of the pass) for every job that is not done."""
    for job in range(done, len(groups) * len(plan.passes)):
        yield job, *divmod(job, len(plan.passes))


def objective_under_ablations(
    denoiser: nn.Module,
    recording: Recording,
    objective: Objective,
    space: ComponentSpace,
    ablations: Sequence[Ablation],
    *,
    rows_per_pass: int = 64,
    state: RunState | None = None,
    progress: bool = True,
) -> Tensor:
    """J float64 [len(ablations)]: the mean over the recording's rows and active timesteps, under each ablation.

    Cost: ``Plan.cost`` forward passes. Raises ValueError as ``rows`` and the objective do.
    """
    plan = Plan.of(recording, objective, rows_per_pass)
    groups = plan.groups(ablations)
    state = state or RunState(None, {}, resume=False)
    sums = state.sums.get("j", torch.zeros(len(ablations), dtype=torch.float64))
    entered = -1
    engine: RowEngine | None = None
    bar = tqdm(total=len(groups) * len(plan.passes), initial=state.done, desc="ablations", disable=not progress)
    try:
        with bar, torch.no_grad(), only_gradients_of(denoiser, []):
            for job, number, place in _jobs(plan, groups, state.done):
                first, group = groups[number]
                if number != entered:
                    engine, entered = _switch(engine, denoiser, group, space), number
                call = repeated(gather(recording, plan.passes[place]), len(group))
                values = objective(call.run(denoiser), call).double().view(len(group), -1).sum(1)
                sums[first : first + len(group)] += values.cpu()
                state.update(job + 1, {"j": sums})
                bar.update()
    finally:
        if engine is not None:
            engine.__exit__(None, None, None)
    return sums / plan.n_rows


def _switch(
    engine: RowEngine | None, denoiser: nn.Module, group: Sequence[Ablation], space: ComponentSpace
) -> RowEngine:
    """An entered engine for the group: the same one where it has as many variants."""
    if engine is not None:
        if engine.variants == len(group):
            engine.set(group)
            return engine
        engine.__exit__(None, None, None)
    return rows(denoiser, group, space).__enter__()


def ablated_gradient_scores(
    denoiser: nn.Module,
    recording: Recording,
    objective: Objective,
    space: ComponentSpace,
    *,
    fraction: float = 0.05,
    partitions: int = 1,
    seed: int = 0,
    rows_per_pass: int = 32,
    state: RunState | None = None,
    progress: bool = True,
) -> Tensor:
    """alpha_i float32 [n] from gradients at ``partitions`` times round(1 / fraction) disjoint ablations.

    Cost: ``Plan.cost`` forward and backward passes.
    Raises ValueError when fraction is not in (0, 0.5] or gives more ablations than components.
    """
    parts = parts_of(fraction, space.n)
    if partitions < 1:
        raise ValueError(f"partitions is {partitions}, expected at least 1")
    plan = Plan.of(recording, objective, rows_per_pass)
    groups = [
        group
        for number in range(partitions)
        for group in plan.groups(Ablation.balanced_partition(space.n, parts, seed + number))
    ]
    state = state or RunState(None, {}, resume=False)
    sums = _Sums(space, denoiser, state.sums)
    bar = tqdm(total=len(groups) * len(plan.passes), initial=state.done, desc="ablated gradient", disable=not progress)
    with bar, only_gradients_of(denoiser, []), torch.enable_grad():
        for number in range(state.done // len(plan.passes), len(groups)):
            _, group = groups[number]
            with rows(denoiser, group, space, gradients="scores" if space.kind == "weight" else "gates") as engine:
                for place in range(max(0, state.done - number * len(plan.passes)), len(plan.passes)):
                    call = repeated(gather(recording, plan.passes[place]), len(group))
                    sums.add(engine, objective(call.run(denoiser), call).sum(), group)
                    state.update(number * len(plan.passes) + place + 1, sums.tensors)
                    bar.update()
    return sums.trapezoid(kept=partitions * (parts - 1), ablated=partitions) / plan.n_rows


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
    sums = _Sums(space, denoiser, {})
    gradients: Gradients = "scores" if space.kind == "weight" else "gates"
    with only_gradients_of(denoiser, []), rows(denoiser, ablations, space, gradients=gradients) as engine:
        for pieces in plan.passes:
            with torch.enable_grad():
                call = repeated(gather(recording, pieces), len(ablations))
                values = objective(call.run(denoiser), call).view(len(ablations), -1)
                share = torch.tensor(list(weights), device=values.device, dtype=values.dtype) / sum(weights)
                sums.add(engine, (values.sum(1) * share).sum(), ablations)
    return ((sums.tensors["kept"] + sums.tensors["ablated"]) / plan.n_rows).cpu()


def parts_of(fraction: float, n: int) -> int:
    """How many disjoint ablations of this fraction cover n components. Raises ValueError where that makes no sense."""
    if not 0 < fraction <= 0.5:
        raise ValueError(f"fraction is {fraction}, expected more than 0 and at most 0.5")
    parts = round(1 / fraction)
    if parts > n:
        raise ValueError(
            f"fraction {fraction} would cut {n} components into {parts} ablations; take at least {1 / n:.2g}"
        )
    return parts


class _Sums:
    """Per component, the gradient summed over the ablations that keep it and over those that do not."""

    def __init__(self, space: ComponentSpace, denoiser: nn.Module, before: dict[str, Tensor]) -> None:
        self.space = space
        modules = space.modules(denoiser)
        self.tensors = before or {
            key: torch.zeros(space.n, device=next(iter(modules.values())).weight.device) for key in ("kept", "ablated")
        }

    def add(self, engine: RowEngine, j: Tensor, group: Sequence[Ablation]) -> None:
        """The gradients of J, a scalar, at the ablations of the group."""
        if self.space.kind == "weight":
            engine.reset_scores()
            j.backward()
            for key, parts in (("kept", engine.kept), ("ablated", engine.ablated)):
                self.tensors[key] += torch.cat([parts[entry.module].flatten() for entry in self.space])
            return
        gates = [engine.gates[entry.module] for entry in self.space]
        gradients = torch.autograd.grad(j, gates, allow_unused=True)
        filled = [torch.zeros_like(gate) if g is None else g for gate, g in zip(gates, gradients, strict=True)]
        whole = torch.cat(filled, 1).float()
        ablated = torch.stack([ablation.mask for ablation in group]).to(whole.device)
        self.tensors["kept"] += torch.where(ablated, 0, whole).sum(0)
        self.tensors["ablated"] += torch.where(ablated, whole, 0).sum(0)

    def trapezoid(self, kept: int, ablated: int) -> Tensor:
        """The mean of the two means, float32 [n] on the CPU."""
        return (0.5 * (self.tensors["kept"] / kept + self.tensors["ablated"] / ablated)).cpu()
