"""A pipeline that draws what it is asked for with coloured pixels, a scorer that reads them, and edits of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import torch
from PIL import Image
from torch import Tensor, nn

from cad_fast.zoo.concepts import OBJECTS, STYLES


class FakePipeline:
    """Draws "a cat in noto style" as an 8x8 picture: object and style in pixel 0, the seed's noise elsewhere.

    ``error_rate`` of the pictures show the next object; with ``erased`` set, that object's always do.
    """

    def __init__(self, error_rate: float = 0.1) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.unet = nn.Linear(8, 8)
        self.error_rate = error_rate
        self.erased: str | None = None
        self.calls: list[dict] = []
        self.fail_at_call: int | None = None

    def __call__(
        self,
        prompt: list[str],
        generator: list[torch.Generator],
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        output_type: str = "pil",
        **kwargs,
    ) -> SimpleNamespace:
        assert output_type == "pil" and len(prompt) == len(generator) and not torch.is_grad_enabled()
        self.calls.append({"prompts": prompt, "steps": num_inference_steps, "guidance": guidance_scale, **kwargs})
        if self.fail_at_call == len(self.calls):
            raise KeyboardInterrupt
        return SimpleNamespace(images=[self._draw(*pair) for pair in zip(prompt, generator, strict=True)])

    def _draw(self, prompt: str, generator: torch.Generator) -> Image.Image:
        words = prompt.split()
        shown = OBJECTS.index(words[1])
        noise = torch.rand(8, 8, 3, generator=generator)
        if words[1] == self.erased or noise[0, 0, 0] < self.error_rate:
            shown = (shown + 1) % len(OBJECTS)
        image = Image.fromarray((noise * 255).to(torch.uint8).numpy())
        image.putpixel((0, 0), (shown, STYLES.index(words[3]), 0))
        return image


class FakeScorer:
    """Reads pixel 0 of the fake pipeline's pictures."""

    def __init__(self) -> None:
        self.axes = {"object": OBJECTS, "style": STYLES}

    def __call__(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        result = {axis: torch.full((len(images), len(labels)), 0.01) for axis, labels in self.axes.items()}
        for row, image in enumerate(images):
            shown, style, _ = image.getpixel((0, 0))
            result["object"][row, shown] = 0.89
            result["style"][row, style] = 0.98
        return result


class FakeEdit:
    """Erases one object from the fake pipeline."""

    def __init__(self, erased: str) -> None:
        self.name = f"no-{erased}"
        self.erased = erased
        self.strengths: list[float] = []

    @contextlib.contextmanager
    def applied(self, pipeline: FakePipeline, strength: float = 1.0) -> Iterator[None]:
        self.strengths.append(strength)
        pipeline.erased = self.erased
        # Weights change too, as with a real edit: the fingerprint must be of the unedited model.
        kept = pipeline.unet.weight.data.clone()
        pipeline.unet.weight.data.zero_()
        try:
            yield
        finally:
            pipeline.erased = None
            pipeline.unet.weight.data.copy_(kept)
