"""The arguments of a pipeline's run: which belong to rows, which JSON can keep, and what its scheduler tells."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from typing import Any

from torch import Tensor

DEFAULT_BATCH = 8
RESERVED = {
    "prompt": "pass `prompts`",
    "generator": "pass `seeds`",
    "output_type": "pass `keep_images`",
    "num_images_per_prompt": "repeat the prompt instead",
    "num_videos_per_prompt": "repeat the prompt instead",
    "return_dict": "it has no effect on a recording",
}


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


def split_kwargs(kwargs: dict[str, Any], n_rows: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pipeline arguments as (shared by all rows, with one entry per row). Raises ValueError for reserved ones.

    Per row are lists and tensors of length ``n_rows`` whose name speaks of prompts, embeddings, images or latents. One
    negative prompt for all becomes one per row, as pipelines want it where the prompts are a list.
    """
    kwargs = {
        name: [value] * n_rows if name.startswith("negative_prompt") and isinstance(value, str) else value
        for name, value in kwargs.items()
    }
    for name, instead in RESERVED.items():
        if name in kwargs:
            raise ValueError(f"the pipeline argument {name!r} is set by the recording: {instead}")

    def per_row(name: str, value: Any) -> bool:
        named = any(word in name for word in ("prompt", "embeds", "image", "latents")) and "ip_adapter" not in name
        sized = isinstance(value, list) or (isinstance(value, Tensor) and value.ndim > 0)
        return named and sized and len(value) == n_rows

    rows = {name: value for name, value in kwargs.items() if per_row(name, value)}
    return {name: value for name, value in kwargs.items() if name not in rows}, rows


def storable(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments that JSON can hold, as it reads them back."""
    kept = {}
    for name, value in kwargs.items():
        try:
            kept[name] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError):
            continue
    return kept


def run_options(pipeline: Any, num_inference_steps: int | None, guidance_scale: float | None) -> dict[str, Any]:
    """Steps and guidance as given, else by the pipeline's defaults, as far as it has such arguments.

    Raises ValueError when one is given that the pipeline does not take.
    """
    parameters = inspect.signature(pipeline.__call__).parameters
    chosen: dict[str, Any] = {}
    for name, value in (("num_inference_steps", num_inference_steps), ("guidance_scale", guidance_scale)):
        if name in parameters:
            default = parameters[name].default
            chosen[name] = default if value is None and default is not inspect.Parameter.empty else value
        elif value is not None:
            raise ValueError(f"{type(pipeline).__name__} takes no argument {name!r}")
    return chosen


def output_option(pipeline: Any, output_type: str) -> dict[str, str]:
    """``output_type`` for pipelines that have it."""
    return {"output_type": output_type} if "output_type" in inspect.signature(pipeline.__call__).parameters else {}


def scheduler_config_of(pipeline: Any) -> dict[str, Any]:
    """The scheduler's config as JSON, with its class under ``_class_name``; empty without a scheduler.

    What diffusers notes of a config's origin (its own version, which values are defaults) is left out: a scheduler that
    was loaded has it, the same one just made has not.
    """
    scheduler = getattr(pipeline, "scheduler", None)
    if scheduler is None:
        return {}
    config = json.loads(json.dumps(dict(scheduler.config), default=str), parse_constant=str)  # no infinities in JSON
    settings = {name: value for name, value in config.items() if not name.startswith("_")}
    return {**settings, "_class_name": type(scheduler).__name__}
