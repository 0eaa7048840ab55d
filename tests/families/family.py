"""What a family is: a tiny pipeline of one of diffusers' classes, and the arguments of its smallest call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import diffusers
import torch
from torch import nn

Kind = Literal["image", "video", "audio"]


@dataclass(frozen=True, eq=False)
class Family:
    """A pipeline built from configs with random weights, and how it is called."""

    name: str
    pipeline_class: str
    kind: Kind
    build: Callable[[], Any] = field(repr=False)
    arguments: dict[str, Any] = field(default_factory=dict)
    """Of a call, besides prompts, generators, the number of steps and the output type."""
    output_type: str | None = "latent"
    """None where the pipeline takes none."""
    calls: int = 2
    """How many denoiser calls two inference steps make, a guided one counting once."""
    unguided: bool = False
    prompts: int = 2
    """How many the pipeline takes in one call, at least; one where it takes no more."""
    one_generator: bool = False
    """Whether the pipeline takes no list of generators, one for each row."""
    target: str | None = None
    """What the scores of weights are taken in; None for the feed-forward layers."""
    fast: bool = False
    """Whether the family is in every run of the tests."""

    def missing(self) -> str | None:
        """Why the pipeline cannot be built with the libraries at hand; None where it can."""
        found = getattr(diffusers, self.pipeline_class, None)
        if found is None:
            return f"diffusers {diffusers.__version__} has no {self.pipeline_class}"
        backends = getattr(found, "_backends", None)  # of the placeholder for a class that needs more libraries
        return f"{self.pipeline_class} needs {', '.join(backends)}" if backends else None

    def pipeline(self) -> Any:
        """The pipeline, built once while it is among the few last used."""
        return built(self.name)

    def for_prompts(self, number: int | None) -> dict[str, Any]:
        """The arguments of a call with a list of so many prompts; None for one prompt that is not in a list."""
        if number is None:
            return dict(self.arguments)
        return {
            name: [value] * number if name in ("negative_prompt", "lyrics") else value
            for name, value in self.arguments.items()
        }


FAMILIES: dict[str, Family] = {}
OPTIONS = ("output_type", "calls", "unguided", "prompts", "one_generator", "target", "fast")


def family(name: str, pipeline_class: str, kind: Kind = "image", **more: Any) -> Callable[[Callable[[], Any]], Any]:
    """Register a builder under ``name``; fields of ``Family`` are taken out of ``more``, the rest are arguments."""
    fields = {key: more.pop(key) for key in OPTIONS if key in more}

    def register(build: Callable[[], Any]) -> Callable[[], Any]:
        assert name not in FAMILIES, name
        FAMILIES[name] = Family(name, pipeline_class, kind, build, more, **fields)
        return build

    return register


@functools.lru_cache(maxsize=2)
def built(name: str) -> Any:
    """The pipeline of a family, with numbers of one seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        pipeline = FAMILIES[name].build()
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                fill(part)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def fill(module: nn.Module) -> None:
    """Put a model in evaluation mode, with numbers in what its class leaves empty, and no layer that does nothing.

    Some classes allocate parameters that only a checkpoint fills, and some begin with weights of zero, under which an
    edit before them would not show.
    """
    module.eval().requires_grad_(False)
    for parameter in module.parameters():
        if not parameter.is_floating_point():
            continue
        if not bool(parameter.isfinite().all()) or (parameter.ndim > 1 and not bool(parameter.any())):
            parameter.normal_(std=0.2)
