"""Contexts around a run of a pipeline or a denoiser: silence, no gradients, its own scheduler; and seeds per row."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def silent(pipeline: Any) -> Iterator[None]:
    """Without the pipeline's own progress bars, which are as before afterwards."""
    if not hasattr(pipeline, "set_progress_bar_config"):
        yield
        return
    before = getattr(pipeline, "_progress_bar_config", None)
    pipeline.set_progress_bar_config(**{**(before or {}), "disable": True})
    try:
        yield
    finally:
        if before is None:
            del pipeline._progress_bar_config
        else:
            pipeline._progress_bar_config = before


@contextlib.contextmanager
def plain_tensors() -> Iterator[None]:
    """No gradients, and no inference mode either: its tensors could not be used for gradients later."""
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextlib.contextmanager
def own_scheduler(pipeline: Any) -> Iterator[Any]:
    """The pipeline with a copy of its scheduler, so that the scheduler's state is as before afterwards."""
    scheduler = getattr(pipeline, "scheduler", None)
    if scheduler is None:
        yield None
        return
    pipeline.scheduler = copy.deepcopy(scheduler)
    try:
        yield pipeline.scheduler
    finally:
        pipeline.scheduler = scheduler


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator per row, so that a row does not depend on its batch mates, nor on the device."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


@contextlib.contextmanager
def only_gradients_of(denoiser: nn.Module, wanted: Sequence[Tensor]) -> Iterator[None]:
    """Within, the denoiser is in eval mode and no parameter but ``wanted`` asks for a gradient; restored afterwards."""
    flags = [(parameter, parameter.requires_grad) for parameter in denoiser.parameters()]
    training = [module for module in denoiser.modules() if module.training]
    denoiser.eval()
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    for tensor in wanted:
        tensor.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module in training:
            module.training = True
