"""Pictures of prompts, each with a seed of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from PIL import Image

from ..diffusion.context import generators
from ..diffusion.dtypes import one_dtype
from ..diffusion.generation import Generation


def image_seed(seed: int, concept: str, index: int) -> int:
    """Seed of picture ``index`` of ``concept``, in 0..2^63-1: it depends on nothing else, so runs can be paired."""
    digest = hashlib.sha256(json.dumps([seed, concept, index]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def draw(pipeline: Any, prompts: Sequence[str], seeds: Sequence[int], generation: Generation) -> list[Image.Image]:
    """Draw one picture for each prompt in one batch; each has a CPU generator with its seed.

    Raises ValueError when the pipeline did not return one PIL image per prompt.
    """
    with one_dtype(pipeline):
        result = pipeline(
            prompt=list(prompts),
            generator=generators(seeds),
            output_type="pil",
            **generation.to_kwargs(len(prompts)),
        )
    images = list(result.images)
    if len(images) != len(prompts) or not all(isinstance(image, Image.Image) for image in images):
        raise ValueError(f"{type(pipeline).__name__} did not return one PIL image per prompt")
    return images
