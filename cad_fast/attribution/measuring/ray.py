"""Measure ablations on the workers of a Ray cluster. The groups are those of a local run, so the numbers are too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ...components.ablation import Ablation
from ...extras import require
from .measurer import Compute, Measurer

# Losses of workers in a row, without a single group measured in between, after which the run gives up.
MOST_LOSSES = 5


class Worker:
    """A process with its own copy of the denoiser. It is made once and then gets only the numbers of ablations."""

    def __init__(self, measurer: Measurer, ablations: Sequence[Ablation], threads: int) -> None:
        # How many threads share a sum decides how it is rounded.
        torch.set_num_threads(threads)
        self.measurer, self.ablations = measurer.__enter__(), ablations

    def measure(self, first: int, count: int) -> list[list[float]]:
        """Measure J [targets][count] of the ablations from number ``first`` on."""
        return self.measurer.measure(self.ablations[first : first + count]).tolist()


def on_ray(measurer: Measurer, ablations: Sequence[Ablation], workers: int | None) -> Compute:
    """Make what measures groups of ablations on Ray actors. It joins the cluster that Ray finds, or starts a local one.

    Denoiser, recordings and ablations go to each worker once; an ablation is then a number. When a worker dies, a new
    one measures its group again.

    Args:
        measurer: Measures a group; each worker gets a copy.
        ablations: What is measured.
        workers: How many actors. None for the cluster's CPUs, or its GPUs where the denoiser is on one.

    Raises:
        ImportError: Ray is not installed. The message names the extra.
        RuntimeError: While measuring, when workers keep dying.
        ValueError: ``workers`` is below 1.
    """
    ray = require("ray", "ray")
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}, expected at least 1")

    def compute(groups: list[tuple[int, int]]) -> Iterator[tuple[int, Tensor]]:
        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False)
        pool = _Pool(ray, measurer, ablations)
        most = workers or int(ray.cluster_resources().get(pool.resource, 1))
        try:
            yield from pool.run(groups, max(1, min(most, len(groups))))
        finally:
            pool.close()

    return compute


class _Pool:
    """Actors, each with a group to measure, and the groups that wait."""

    def __init__(self, ray: Any, measurer: Measurer, ablations: Sequence[Ablation]) -> None:
        self.ray = ray
        on_gpu = any(parameter.is_cuda for parameter in measurer.denoiser.parameters())
        self.resource = "GPU" if on_gpu else "CPU"
        self.kind = ray.remote(num_gpus=1)(Worker) if on_gpu else ray.remote(num_cpus=1)(Worker)
        self.shared = (ray.put(measurer), ray.put(ablations), torch.get_num_threads())
        self.actors: list[Any] = []

    def run(self, groups: list[tuple[int, int]], workers: int) -> Iterator[tuple[int, Tensor]]:
        """Yield every group once, in the order in which they are done."""
        waiting = groups[::-1]
        running: dict[Any, tuple[Any, tuple[int, int]]] = {}

        def start(actor: Any) -> None:
            if waiting:
                group = waiting.pop()
                running[actor.measure.remote(*group)] = (actor, group)

        for _ in range(workers):
            start(self._actor())
        losses = 0
        while running:
            (done,), _ = self.ray.wait(list(running), num_returns=1)
            actor, group = running.pop(done)
            try:
                values = self.ray.get(done)
            except self.ray.exceptions.RayActorError as error:
                losses += 1
                if losses > MOST_LOSSES:
                    raise RuntimeError(
                        f"{losses} workers were lost in a row, the last of them with the ablations from {group[0]} on; "
                        f"too little memory, perhaps: {error}"
                    ) from error
                self.actors.remove(actor)
                waiting.append(group)
                start(self._actor())
                continue
            except self.ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, Exception) else error from None
            losses = 0
            start(actor)
            yield group[0], torch.tensor(values, dtype=torch.float64)

    def _actor(self) -> Any:
        self.actors.append(self.kind.remote(*self.shared))
        return self.actors[-1]

    def close(self) -> None:
        """End the workers. The cluster stays."""
        for actor in self.actors:
            self.ray.kill(actor)
        self.actors = []
