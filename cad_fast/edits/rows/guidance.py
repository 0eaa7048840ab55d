"""Which rows of a denoiser call belong to which prompt, and which of them are conditional."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...diffusion.denoisers import whole_pipeline
from ...diffusion.trees import leaves, same_leaf
from .running import RunningCall
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
        self.pipeline = whole_pipeline(pipeline)
        self.is_pipeline = not isinstance(pipeline, nn.Module)
        self._before: tuple[RunningCall, Any, Tensor] | None = None

    def layout(self, facts: CallFacts, prompts: int, images: int | None, needs_branch: bool) -> Layout:
        """The layout of a call for so many prompts and images of each (None: as many as there are rows).

        Raises ValueError when the rows do not fit, or ``needs_branch`` and the branches cannot be told.
        """
        running = RunningCall.of(self.pipeline) if self.is_pipeline else None
        if images is not None:
            copies = self._copies(facts, prompts * images, running)
        else:
            told = running is not None and running.conditional is not None
            copies = self._copies_of_all(facts, running) if needs_branch and not told else 1
        if copies is None:
            raise ValueError(
                f"edits were given for {prompts} prompts with {images} images each, but the denoiser was called with "
                f"{facts.rows} rows: expected one entry in edit_names per prompt (negative prompts not counted), and "
                "num_images_per_prompt"
            )
        images = facts.rows // (copies * prompts)
        if not needs_branch:
            return Layout(copies, images, None)
        if running is None:
            raise ValueError(
                "the denoiser was called from elsewhere than a call of the pipeline that the EditManager was made for, "
                "so it cannot be told which rows are conditional: make a manager of the pipeline that is called, or "
                "use branch='both'"
            )
        if running.conditional is not None and copies == 1:
            return Layout(copies, images, (running.conditional,))
        if copies > 2:
            raise ValueError("guidance with three terms has no one conditional branch: use branch='both'")
        if copies == 2:
            first = _negative_half(facts, running.negative)
            conditional_first = running.conditional_first if first is None else first == 1
            return Layout(copies, images, (conditional_first, not conditional_first))
        # As everywhere in diffusers: unconditional is the last of two calls.
        return Layout(copies, images, (not self._repeats(facts, running),))

    def _copies(self, facts: CallFacts, samples: int, running: RunningCall | None) -> int | None:
        copies, left = divmod(facts.rows, samples)
        if left or copies not in (1, 2, 3):
            return None
        # In pipelines that draw parts of a picture the rows of one part are side by side, and copies are not alike.
        if copies > 1 and not all(same_leaf(facts.sample[:samples], c) for c in facts.sample.split(samples)):
            return None
        if running is not None and running.samples is not None:
            return copies if samples == running.samples else None
        # Two copies are equal halves; three are not, or there are more prompts than it seems.
        return copies if copies == 1 or (copies == 2) == (self._guess(facts) == 2) else None

    def _copies_of_all(self, facts: CallFacts, running: RunningCall | None) -> int:
        if running is None or running.samples is None or facts.rows % running.samples:
            return self._guess(facts, running)
        return facts.rows // running.samples

    def _guess(self, facts: CallFacts, running: RunningCall | None = None) -> int:
        """The copies that there seem to be, where the pipeline does not tell how many samples it draws."""
        half, left = divmod(facts.rows, 2)
        guided = getattr(self.pipeline, "do_classifier_free_guidance", None) if running is None else running.guided
        if left or not half or not self.is_pipeline or guided is False:
            return 1
        if not same_leaf(facts.sample[:half], facts.sample[half:]):
            return 1
        if running is not None and guided is None:
            raise ValueError(
                "both halves of the rows have the same sample, and the pipeline does not tell whether they are the two "
                "branches of guidance: use other seeds, or branch='both'"
            )
        return 2

    def _repeats(self, facts: CallFacts, running: RunningCall) -> bool:
        """Whether the call is the second at one timestep with one sample, in one run."""
        if running.guided is False:
            self._before = None
            return False
        before, self._before = self._before, (running, facts.timestep, facts.sample.clone())
        if before is None or not (same_leaf(before[1], facts.timestep) and same_leaf(before[2], facts.sample)):
            return False
        if not running.same_run(before[0]):
            return False
        self._before = None  # a third call begins another pair
        return True


def _negative_half(facts: CallFacts, negative: Sequence[Tensor]) -> int | None:
    """Which half of the rows, 0 or 1, has an argument of the negative prompt's; None if it does not show."""
    for _, leaf in leaves(facts.inputs):
        if not isinstance(leaf, Tensor) or leaf.ndim < 2 or len(leaf) != facts.rows or leaf is facts.sample:
            continue
        for known in negative:
            are = [same_leaf(half, known) for half in leaf.chunk(2)]
            if are[0] != are[1]:
                return are.index(True)
    return None
