"""Which rows of a denoiser call belong to which prompt, and which of them are conditional."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...diffusion.trees import same_leaf
from .uses import CallFacts


@dataclass(frozen=True)
class Layout:
    """A call's rows: ``copies`` times all prompts, ``images`` rows each; which copies are conditional, if asked for."""

    copies: int
    images: int
    conditional: tuple[bool, ...] | None


class Guidance:
    """Tells the layout of the calls of one pipeline, whose guidance is in one batch, in two calls, or absent."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.is_pipeline = not isinstance(pipeline, nn.Module)
        self._before: tuple[Any, Tensor] | None = None

    def layout(self, facts: CallFacts, prompts: int, images: int | None, needs_branch: bool) -> Layout:
        """The layout of a call for so many prompts and images of each (None: as many as there are rows).

        Raises ValueError when the rows do not fit, or ``needs_branch`` and the branches cannot be told.
        """
        copies = self._copies_of_all(facts) if images is None else self._copies(facts, prompts * images)
        if copies is None:
            raise ValueError(
                f"edits were given for {prompts} prompts with {images} images each, but the denoiser was called with "
                f"{facts.rows} rows: expected one entry in edit_names per prompt (negative prompts not counted), and "
                "num_images_per_prompt"
            )
        images = facts.rows // (copies * prompts)
        if not needs_branch:
            return Layout(copies, images, None)
        if copies > 2:
            raise ValueError("guidance with three terms has no one conditional branch: use branch='both'")
        # As everywhere in diffusers: unconditional first in a batch, last in two calls.
        return Layout(copies, images, (False, True) if copies == 2 else (not self._repeats(facts),))

    def _copies(self, facts: CallFacts, samples: int) -> int | None:
        copies, left = divmod(facts.rows, samples)
        if left or copies not in (1, 2, 3):
            return None
        # Two copies are equal halves; three are not, or there are more prompts than it seems.
        return copies if copies == 1 or (copies == 2) == (self._copies_of_all(facts) == 2) else None

    def _copies_of_all(self, facts: CallFacts) -> int:
        half, left = divmod(facts.rows, 2)
        unguided = not self.is_pipeline or getattr(self.pipeline, "do_classifier_free_guidance", None) is False
        if left or not half or unguided:
            return 1
        return 2 if same_leaf(facts.sample[:half], facts.sample[half:]) else 1

    def _repeats(self, facts: CallFacts) -> bool:
        """Whether the call is the second at one timestep with one sample."""
        before, self._before = self._before, (facts.timestep, facts.sample.clone())
        repeats = before is not None and same_leaf(before[0], facts.timestep) and same_leaf(before[1], facts.sample)
        if repeats:
            self._before = None  # a third call begins another pair
        return repeats
