"""cad_fast as a technique of the benchmark eval-unlearn, which finds it by its entry point.

eval-unlearn makes a technique from the configuration of a run, and asks it for the pictures of one batch of prompts
after the other. With its runner:

    {"technique": {"name": "cad_fast", "config": {"model": "zoo:emoji", "edit": "edits/no-cat"}}, "metrics": [...]}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from typing import Any

from PIL import Image

from .. import zoo
from ..diffusion.context import plain_tensors, silent
from ..diffusion.generation import Generation
from ..edits.edit import Edit
from ..evaluation.drawing import draw, image_seed
from ..evaluation.prompts import unknown
from ..loading import load_pipeline
from ..making import erase

LOADING = ("dtype", "variant", "revision", "device", "offload", "denoiser_weights", "part")
ERASING = ("prompts", "keep", "ratio", "target_modules", "timesteps", "samples")


@dataclass(frozen=True)
class TechniqueConfig:
    """The ``config`` of the technique.

    Args:
        model: what ``cad_fast.load_pipeline`` takes: ``zoo:emoji``, a folder, or a Hub repository.
        edit: folder of an edit, or a Hub repository, as ``cad_fast.Edit.from_pretrained`` takes it.
        erase_concept: the concept; without ``edit`` the one that ``cad_fast.erase`` erases. With neither the pictures
            are those of the model without an edit.
        strength: how far the edit goes.
        erasing: further arguments of ``cad_fast.erase``: ``prompts``, ``keep``, ``ratio``, ``target_modules``,
            ``timesteps``, ``samples``.
        loading: further arguments of ``load_pipeline``, such as ``dtype`` and ``device``.
        generation: what the pipeline's call takes, such as ``num_inference_steps``.
        seed: of the pictures where the runner has none.
        batch_size: how many pictures are made at once.

    Raises:
        ValueError: an argument is missing, unknown or out of range. The message names it.
    """

    model: str = ""
    edit: str | None = None
    erase_concept: str | None = None
    strength: float = 1.0
    erasing: dict[str, Any] = field(default_factory=dict)
    loading: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    batch_size: int = 8

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("the config has no 'model', such as zoo:emoji, a folder or a Hub repository")
        for name, known in (("erasing", ERASING), ("loading", LOADING)):
            for argument in getattr(self, name):
                if argument not in known:
                    raise ValueError(f"the config's {name!r}: {unknown('argument', argument, known)}")
        if self.erasing and (self.edit is not None or self.erase_concept is None):
            raise ValueError("the config's 'erasing' goes with 'erase_concept' and without 'edit'")
        if self.batch_size < 1:
            raise ValueError(f"the config's batch_size is {self.batch_size}, expected at least 1")

    @classmethod
    def of(cls, config: dict[str, Any]) -> TechniqueConfig:
        """Read the config of a run, in which every name must be known."""
        known = [each.name for each in fields(cls)]
        for name in config:
            if name not in known:
                raise ValueError(f"the config: {unknown('argument', name, known)}")
        return cls(**config)


class CadFastTechnique:
    """A pipeline under an edit, as eval-unlearn wants it.

    The seed of a picture comes from the run's seed, its prompt, and how often this technique drew that prompt before.
    It does not depend on the batches, which eval-unlearn gives the same seed each. So the pictures of two runs can be
    compared one by one, and a prompt that comes again is drawn anew.
    """

    def __init__(self, **technique_config: Any) -> None:
        """Load the model and the edit, or make the edit.

        Raises ValueError as ``TechniqueConfig`` does, and what ``load_pipeline``, ``Edit.from_pretrained`` and
        ``erase`` raise.
        """
        self.config = config = TechniqueConfig.of(technique_config)
        self.pipeline = load_pipeline(config.model, **config.loading)
        embedded = zoo.name_of(self.pipeline)
        of_zoo = None if embedded is None else zoo.generation(embedded)
        self.generation = Generation.of(of_zoo, **config.generation)
        self.edit = self._edit()
        self._drawn: Counter[str] = Counter()

    def _edit(self) -> Edit | None:
        config = self.config
        if config.edit is not None:
            return Edit.from_pretrained(config.edit, self.pipeline)
        if config.erase_concept is None:
            return None
        making = {"progress": False, **config.erasing, **self.generation.to_kwargs()}
        return erase(self.pipeline, config.erase_concept, seed=config.seed, **making)

    def generate(self, prompts: Sequence[str], seed: int | None = None, **kwargs: Any) -> list[Image.Image]:
        """Draw one picture for each prompt.

        Args:
            prompts: the texts.
            seed: of the run. None: that of the config.
            **kwargs: go to the pipeline, such as ``num_inference_steps``, in place of the config's.

        Returns:
            The pictures, in the order of the prompts.

        Raises:
            ValueError: the pipeline takes no such argument, or did not return one picture for each prompt.
        """
        seeds = [self._seed_of(prompt, self.config.seed if seed is None else seed) for prompt in prompts]
        generation = Generation.of(self.generation, **kwargs).resolved(self.pipeline)
        images: list[Image.Image] = []
        with silent(self.pipeline), plain_tensors(), self._edited():
            for start in range(0, len(prompts), self.config.batch_size):
                batch = slice(start, start + self.config.batch_size)
                images += draw(self.pipeline, prompts[batch], seeds[batch], generation)
        return images

    def _seed_of(self, prompt: str, seed: int) -> int:
        before = self._drawn[prompt]
        self._drawn[prompt] += 1
        return image_seed(seed, prompt, before)

    def _edited(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.edit is None else self.edit.applied(self.pipeline, strength=self.config.strength)
