"""Contexts around a run of a pipeline or a denoiser: silence, no gradients, its own scheduler; and seeds per row."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .denoisers import whole_pipeline


def inner_pipelines(pipeline: Any) -> dict[str, Any]:
    """The pipelines that a combined pipeline is made of, by the name of its attribute."""
    return {
        name: value
        for name, value in getattr(pipeline, "__dict__", {}).items()
        if not isinstance(value, nn.Module) and callable(value) and isinstance(getattr(value, "components", None), dict)
    }


def with_inner(pipeline: Any) -> list[Any]:
    """A pipeline, and those that it is made of at any depth."""
    whole = whole_pipeline(pipeline)
    return [whole, *(each for inner in inner_pipelines(whole).values() for each in with_inner(inner))]


@contextlib.contextmanager
def silent(pipeline: Any) -> Iterator[None]:
    """Without the pipeline's own progress bars, nor those of pipelines in it, which are as before afterwards."""
    pipelines = [each for each in with_inner(pipeline) if hasattr(each, "set_progress_bar_config")]
    before = [getattr(each, "_progress_bar_config", None) for each in pipelines]
    for each, config in zip(pipelines, before, strict=True):  # a combined pipeline tells those in it, which come later
        each.set_progress_bar_config(**{**(config or {}), "disable": True})
    try:
        yield
    finally:
        for each, config in zip(pipelines, before, strict=True):
            if config is not None:
                each._progress_bar_config = config
            elif "_progress_bar_config" in vars(each):  # combined pipelines have none
                del each._progress_bar_config


@contextlib.contextmanager
def plain_tensors() -> Iterator[None]:
    """No gradients, and no inference mode either: its tensors could not be used for gradients later."""
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextlib.contextmanager
def own_scheduler(pipeline: Any) -> Iterator[Any]:
    """The pipeline with a copy of its scheduler, so that the scheduler's state is as before afterwards.

    Pipelines in it get copies too: of one scheduler the same one, as they step what the outer one has.
    """
    scheduler = getattr(pipeline, "scheduler", None)
    if scheduler is None:
        yield None
        return
    copies: dict[int, Any] = {}
    owners = [each for each in with_inner(pipeline) if getattr(each, "scheduler", None) is not None]
    before = [each.scheduler for each in owners]
    for each in owners:
        each.scheduler = copy.deepcopy(each.scheduler, copies)
    try:
        yield pipeline.scheduler
    finally:
        for each, kept in zip(owners, before, strict=True):
            each.scheduler = kept


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
