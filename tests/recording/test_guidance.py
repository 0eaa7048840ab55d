"""Conditional and unconditional outputs are told apart by the data, whatever the guidance: on toys."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from cad_fast.recording.record import record
from cad_fast.recording.renoise import renoise
from tests.recording.common import close


class ToyDenoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 4 * 4).view(4, 4))

    def forward(self, sample, timestep, text=None, extra=None):
        return torch.einsum("oc,bchw->bohw", self.weight, sample) + text[:, :, None, None] * (1 + timestep / 1000)


class ToyPipeline:
    """Guides in the way that ``style`` says; prompts become text embeddings by their length."""

    def __init__(self, style: str) -> None:
        self.unet, self.scheduler, self.style = ToyDenoiser(), DDIMScheduler(clip_sample=False), style

    def __call__(self, prompt, generator, num_inference_steps=2, guidance_scale=3.0, output_type="pil"):
        text = torch.stack([torch.full((4,), float(len(p))) for p in prompt])
        latents = torch.cat([torch.randn(1, 4, 2, 2, generator=g) for g in generator])
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            predicted = getattr(self, self.style)(latents, t, text, -text, guidance_scale)
            latents = self.scheduler.step(predicted, t, latents).prev_sample
        return SimpleNamespace(images=latents).images[None]

    def _batched(self, latents, t, texts):
        return self.unet(torch.cat([latents] * len(texts)), t, text=torch.cat(texts)).chunk(len(texts))

    def unconditional_first(self, latents, t, text, none, scale):
        without, with_text = self._batched(latents, t, [none, text])
        return without + scale * (with_text - without)

    def conditional_first(self, latents, t, text, none, scale):
        with_text, without = self._batched(latents, t, [text, none])
        return without + scale * (with_text - without)

    def negated(self, latents, t, text, none, scale):
        return -self.conditional_first(latents, t, text, none, scale)

    def separate(self, latents, t, text, none, scale):
        with_text, without = self.unet(latents, t, text=text), self.unet(latents, t, text=none)
        return without + scale * (with_text - without)

    def separate_unconditional_first(self, latents, t, text, none, scale):
        without, with_text = self.unet(latents, t, text=none), self.unet(latents, t, text=text)
        return without + scale * (with_text - without)

    def three_terms(self, latents, t, text, none, scale):
        return sum(self._batched(latents, t, [text, none, text]))

    def other_samples(self, latents, t, text, none, scale):
        return self.unet(torch.cat([latents, latents + 1]), t, text=torch.cat([text, none])).chunk(2)[0]

    def perturbed(self, latents, t, text, none, scale):
        with_text = self.unet(latents, t, text=text)
        self.unet.weight.data *= 2
        perturbed = self.unet(latents, t, text=text)
        self.unet.weight.data /= 2
        return with_text + scale * (with_text - perturbed)

    def unknown_object(self, latents, t, text, none, scale):
        return self.unet(latents, t, text=text, extra=object())


@pytest.mark.parametrize(
    "style", ["unconditional_first", "conditional_first", "negated", "separate", "separate_unconditional_first"]
)
def test_conditional_rows_are_told_by_what_the_scheduler_gets(style: str) -> None:
    recording = record(ToyPipeline(style), ["a", "bcd"], progress=False)
    for call in recording.calls:
        assert call.inputs["text"][:, 0].tolist() == [1.0, 3.0]
        assert call.unconditional_inputs["text"][:, 0].tolist() == [-1.0, -3.0]
        close(call.unconditional_output, ToyDenoiser()(**call.unconditional_inputs).detach())


@pytest.mark.parametrize(
    ("style", "message"),
    [
        ("three_terms", "denoiser calls of 6 rows for 2 samples"),
        ("other_samples", "halves differ in 'sample'"),
        ("perturbed", "twice on the same inputs"),
        ("unknown_object", "argument extra holds a object"),
    ],
)
def test_other_guidance_is_refused_and_leaves_no_traces(style: str, message: str) -> None:
    pipeline = ToyPipeline(style)
    with pytest.raises(ValueError, match=message):
        record(pipeline, ["a", "bcd"], progress=False)
    assert not pipeline.unet._forward_hooks and "step" not in vars(pipeline.scheduler)


def test_a_negated_output_has_no_known_target() -> None:
    with pytest.raises(ValueError, match="negates"):
        renoise(torch.randn(1, 4, 2, 2), ToyPipeline("negated"), ["a"], timesteps=2)
