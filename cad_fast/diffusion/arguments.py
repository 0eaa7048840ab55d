"""The arguments of a pipeline's run: its prompts and seeds, which belong to rows, and what its scheduler tells."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from .generation import Generation

DEFAULT_BATCH = 8


def prediction_type_of(scheduler: Any) -> str | None:
    """epsilon, v_prediction, sample or flow_prediction, by the scheduler's config; None where it does not tell."""
    config = getattr(scheduler, "config", None) or {}
    if "FlowMatch" in type(scheduler).__name__ or config.get("use_flow_sigmas"):
        return "flow_prediction"
    return config.get("prediction_type")


def spread_prompts(prompts: str | Sequence[str], seeds: int | Sequence[int] | None) -> tuple[list[str], list[int]]:
    """One prompt and one seed per row: an int s stands for s, s+1, ...; None for 0; one text for as many as seeds.

    Raises ValueError when there are no prompts or the numbers differ.
    """
    rows = len(seeds) if isinstance(seeds, Sequence) else 1
    texts = [prompts] * rows if isinstance(prompts, str) else list(prompts)
    if isinstance(seeds, Sequence):
        numbers = [int(seed) for seed in seeds]
    else:
        numbers = [int(seeds or 0) + i for i in range(len(texts))]
    if not texts:
        raise ValueError("there are no prompts to record")
    if len(numbers) != len(texts):
        raise ValueError(f"there are {len(texts)} prompts and {len(numbers)} seeds; expected one seed per prompt")
    return texts, numbers


def prompt_arguments(prompts: Sequence[str], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a pipeline's call with the prompts, which embeddings given among them take the place of."""
    embedded = arguments.get("prompt_embeds") is not None
    return dict(arguments) if embedded else {"prompt": list(prompts), **arguments}


def split_rows(generation: Generation, n_rows: int) -> tuple[Generation, dict[str, Any]]:
    """What all rows share, and the pipeline's arguments with one entry per row.

    Per row are lists and tensors of length ``n_rows`` whose name speaks of prompts, embeddings, images or latents. One
    negative prompt for all becomes one per row, as pipelines want it where the prompts are a list.
    """

    def per_row(name: str, value: Any) -> bool:
        named = any(word in name for word in ("prompt", "embeds", "image", "latents")) and "ip_adapter" not in name
        sized = isinstance(value, list) or (isinstance(value, Tensor) and value.ndim > 0)
        return named and sized and len(value) == n_rows

    arguments = Generation(arguments=generation.arguments).to_kwargs(n_rows)
    rows = {name: value for name, value in arguments.items() if per_row(name, value)}
    shared = {name: value for name, value in arguments.items() if name not in rows}
    return replace(generation, arguments=shared), rows


def output_option(pipeline: Any, output_type: str) -> dict[str, str]:
    """``output_type`` for pipelines that have it."""
    return {"output_type": output_type} if "output_type" in inspect.signature(pipeline.__call__).parameters else {}


def scheduler_config_of(pipeline: Any) -> dict[str, Any]:
    """The config of ``pipeline.scheduler`` as JSON, with its class under ``_class_name``; empty without a scheduler.

    What diffusers notes of a config's origin (its own version, which values are defaults) is left out: a scheduler that
    was loaded has it, the same one just made has not.
    """
    scheduler = getattr(pipeline, "scheduler", None)
    if scheduler is None:
        return {}
    config = json.loads(json.dumps(dict(scheduler.config), default=str), parse_constant=str)  # no infinities in JSON
    settings = {name: value for name, value in config.items() if not name.startswith("_")}
    return {**settings, "_class_name": type(scheduler).__name__}
