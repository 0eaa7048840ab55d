"""J under many ablations, for one concept or many, here or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ...choices import EXECUTORS, Executor
from ...components.ablation import Ablation
from ...components.space import ComponentSpace
from ...objectives import Objective
from ...recording.data import Recording
from ..store import RunState
from .measurer import Compute, Measurer
from .plans import ROWS_PER_PASS, Target


def measure_all(
    measurer: Measurer,
    ablations: Sequence[Ablation],
    *,
    state: RunState | None = None,
    until: Callable[[Tensor], bool] | None = None,
    progress: bool = True,
    executor: Executor = "local",
    workers: int | None = None,
) -> Tensor:
    """Measure J under each ablation: the mean over the rows and active timesteps.

    Args:
        measurer: Measures a group of ablations.
        ablations: What is measured.
        state: Where J is kept. What it has is not measured again. None for nowhere.
        until: Gets J [targets, k] of the first k ablations, group by group in their order. The run stops early when it
            returns True.
        progress: Whether to show a progress bar.
        executor: "local", or "ray" for a Ray cluster (extra ``ray``). It measures the same groups, so the numbers are
            the same.
        workers: How many Ray workers measure. None for as many as the cluster has CPUs, or GPUs.

    Returns:
        float64 [targets, len(ablations)], or [targets, k] after an early stop.

    Raises:
        ValueError: ``executor`` is unknown.
    """
    if executor not in EXECUTORS:
        raise ValueError(f"executor is {executor!r}, expected 'local' or 'ray'")
    state = state or RunState(None, {}, resume=False)
    groups = measurer.plan.groups(len(ablations))
    j = torch.full((len(measurer.targets), len(ablations)), torch.nan, dtype=torch.float64)
    missing = []
    for first, count in groups:
        known = [state.measured.get(number) for number in range(first, first + count)]
        if all(known):
            j[:, first : first + count] = torch.tensor(known, dtype=torch.float64).T
        else:
            missing.append((first, count))
    compute = locally(measurer, ablations)
    if executor == "ray":
        from .ray import on_ray

        compute = on_ray(measurer, ablations, workers)
    done = len(ablations) - sum(count for _, count in missing)
    bar = tqdm(total=len(ablations), initial=done, desc="ablations", unit="ablation", disable=not progress)
    looked = 0  # ablations, in their order, that `until` has seen

    def enough() -> bool:
        nonlocal looked
        while looked < len(ablations) and not bool(j[0, looked].isnan()):
            looked = min(looked + measurer.plan.variants, len(ablations))
            if until is not None and until(j[:, :looked]):
                return True
        return False

    with bar:
        if not enough():
            for first, values in compute(missing):
                state.add(first, values)
                j[:, first : first + values.shape[1]] = values
                bar.update(values.shape[1])
                if enough():
                    break
    return j[:, :looked]


def locally(measurer: Measurer, ablations: Sequence[Ablation]) -> Compute:
    """Make what measures groups of ablations in this process, one after another."""

    def compute(groups: list[tuple[int, int]]) -> Iterator[tuple[int, Tensor]]:
        with measurer:
            for first, count in groups:
                yield first, measurer.measure(ablations[first : first + count])

    return compute


def objective_under_ablations(
    denoiser: nn.Module,
    recording: Recording,
    objective: Objective,
    space: ComponentSpace,
    ablations: Sequence[Ablation],
    *,
    rows_per_pass: int = ROWS_PER_PASS,
    state: RunState | None = None,
    until: Callable[[Tensor], bool] | None = None,
    progress: bool = True,
) -> Tensor:
    """Measure J under each ablation for one objective on one recording.

    Cost: ``MeasuringPlan.cost`` forward passes.

    Args:
        denoiser: The module that is run.
        recording: Calls of this denoiser.
        objective: J.
        space: The components that the ablations are of.
        ablations: What is measured.
        rows_per_pass: How many rows go through the denoiser at once, at most.
        state: As for ``measure_all``.
        until: As for ``measure_all``, with J [k].
        progress: Whether to show a progress bar.

    Returns:
        float64 [len(ablations)], or [k] after an early stop.

    Raises:
        ValueError: As ``rows`` and the objective.
    """
    measurer = Measurer(denoiser, [Target(objective, recording)], space, rows_per_pass)
    of_target = None if until is None else lambda j: until(j[0])
    return measure_all(measurer, ablations, state=state, until=of_target, progress=progress)[0]
