"""Pictures for probes: drawn by the pipeline in any way that its call allows, and judged for one concept."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..diffusion.context import generators, plain_tensors, silent
from ..diffusion.dtypes import one_dtype
from ..diffusion.generation import Generation
from ..edits.edit import Edit
from ..evaluation.evaluate import image_seed
from ..evaluation.prompts import unknown
from ..evaluation.scorers import Scorer, checked_probabilities

BATCH = 24


@dataclass(frozen=True)
class Drawer:
    """Draws pictures and says which show the concept.

    Attributes:
        pipeline: what draws.
        concept: a label of the scorer's axis.
        scorer: what judges.
        axis: of the scorer.
        generation: of all pictures.
        seed: of their stream (see ``image_seed``): picture i has the same noise in every way of drawing it.
    """

    pipeline: Any
    concept: str
    scorer: Scorer
    axis: str
    generation: Generation
    seed: int

    def __post_init__(self) -> None:
        if self.axis not in self.scorer.axes:
            raise ValueError(f"the scorer cannot judge this: {unknown('axis', self.axis, self.scorer.axes)}")
        if self.concept not in self.scorer.axes[self.axis]:
            known = self.scorer.axes[self.axis]
            raise ValueError(f"the scorer cannot judge this: {unknown(self.axis, self.concept, known)}")

    def draw(
        self,
        count: int,
        prompts: Sequence[str] | None = None,
        *,
        edit: Edit | None = None,
        pipeline: Any = None,
        **rows: Any,
    ) -> list[Image.Image]:
        """Draw ``count`` pictures; prompts take turns. ``rows`` are arguments with one entry per picture."""
        pipeline = self.pipeline if pipeline is None else pipeline
        images: list[Image.Image] = []
        edited = contextlib.nullcontext() if edit is None else edit.applied(pipeline)
        with silent(pipeline), plain_tensors(), one_dtype(pipeline), edited:
            for start in range(0, count, BATCH):
                numbers = range(start, min(start + BATCH, count))
                arguments = {name: values[start : numbers.stop] for name, values in rows.items()}
                if prompts is not None:
                    arguments["prompt"] = [prompts[number % len(prompts)] for number in numbers]
                seeds = [image_seed(self.seed, self.concept, number) for number in numbers]
                settings = {**self.generation.resolved(pipeline).to_kwargs(len(numbers)), "output_type": "pil"}
                images += pipeline(generator=generators(seeds), **arguments, **settings).images
        return images

    def hits(self, images: Sequence[Image.Image]) -> list[bool]:
        """Whether each picture is recognised as the concept."""
        labels = self.scorer.axes[self.axis]
        most = checked_probabilities(self.scorer, images)[self.axis].argmax(1).tolist()
        return [labels[each] == self.concept for each in most]
