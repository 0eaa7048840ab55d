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
    """J float64 [targets, len(ablations)]: the mean over the rows and active timesteps, under each ablation.

    What ``state`` has is not measured again. ``until`` is shown J [targets, k] of the first k ablations, group by
    group in their order, and ends the run by True, with those. ``executor``: "local", or "ray" with so many
    ``workers`` (extra ``ray``), which measures the same groups and so gives the same numbers.
    """
    if executor not in EXECUTORS:
        raise ValueError(f"executor is {executor!r}, expected 'local' or 'ray'")
    state = state or RunState(None, {}, resume=False)
    groups = measurer.plan.groups(len(ablations))
    found = torch.full((len(measurer.targets), len(ablations)), torch.nan, dtype=torch.float64)
    missing = []
    for first, count in groups:
        known = [state.measured.get(number) for number in range(first, first + count)]
        if all(known):
            found[:, first : first + count] = torch.tensor(known, dtype=torch.float64).T
        else:
            missing.append((first, count))
    compute = _local(measurer, ablations)
    if executor == "ray":
        from .ray import on_ray

        compute = on_ray(measurer, ablations, workers)
    done = len(ablations) - sum(count for _, count in missing)
    bar = tqdm(total=len(ablations), initial=done, desc="ablations", unit="ablation", disable=not progress)
    looked = 0  # ablations, in their order, that `until` has seen

    def enough() -> bool:
        nonlocal looked
        while looked < len(ablations) and not bool(found[0, looked].isnan()):
            looked = min(looked + measurer.plan.variants, len(ablations))
            if until is not None and until(found[:, :looked]):
                return True
        return False

    with bar:
        if not enough():
            for first, values in compute(missing):
                state.add(first, values)
                found[:, first : first + values.shape[1]] = values
                bar.update(values.shape[1])
                if enough():
                    break
    return found[:, :looked]


def _local(measurer: Measurer, ablations: Sequence[Ablation]) -> Compute:
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
    """J float64 [len(ablations)]: the mean over the recording's rows and active timesteps, under each ablation.

    ``until`` is shown J of the ablations so far whenever some are done, and ends the run by True, with those.
    Cost: ``Plan.cost`` forward passes. Raises ValueError as ``rows`` and the objective do.
    """
    measurer = Measurer(denoiser, [Target(objective, recording)], space, rows_per_pass)
    one = None if until is None else lambda j: until(j[0])
    return measure_all(measurer, ablations, state=state, until=one, progress=progress)[0]
