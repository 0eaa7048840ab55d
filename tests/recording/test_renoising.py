"""The inputs and targets of the denoising loss."""

from __future__ import annotations

import copy

import pytest
import torch
from PIL import Image

from cad_fast.recording.record import with_base
from cad_fast.recording.renoise import record_images, renoise
from tests.pipelines import PIPELINES, flux, pixart, stable_diffusion, stable_diffusion_3
from tests.recording.common import PROMPTS, close, make


def noise_of(row: int, steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(row)
    return [torch.randn(4, 8, 8, generator=generator) for _ in range(steps)]


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpm"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("timesteps", [[20, 500, 980], 3])
def test_noised_samples_and_targets(scheduler: str, prediction_type: str, timesteps) -> None:
    pipeline = stable_diffusion(prediction_type, scheduler)
    clean = torch.randn(3, 4, 8, 8)
    recording = renoise(clean, pipeline, PROMPTS, timesteps=timesteps, seed=40, batch_size=2)
    assert recording.n_rows == recording.n_steps == 3 and recording.seeds == [40, 41, 42]
    if isinstance(timesteps, list):
        assert recording.timesteps == [980.0, 500.0, 20.0]
    table = pipeline.scheduler.alphas_cumprod.double()
    for step, call in enumerate(recording.calls):
        if call.timestep != int(call.timestep):
            continue  # Euler spaces its steps between the timesteps of training
        kept = table[int(call.timestep)].float()
        noise = torch.stack([noise_of(40 + row, 3)[step] for row in range(3)])
        close(call.sample, kept.sqrt() * clean + (1 - kept).sqrt() * noise, 1e-4)
        velocity = kept.sqrt() * noise - (1 - kept).sqrt() * clean
        close(call.target, {"epsilon": noise, "v_prediction": velocity, "sample": clean}[prediction_type], 1e-4)
        assert call.output is None and call.unconditional_output is None
        if scheduler == "ddim":
            at = torch.full((3,), int(call.timestep))
            close(velocity, pipeline.scheduler.get_velocity(clean, noise, at), 1e-4)


@pytest.mark.parametrize("timesteps", [[100, 900], 3])
def test_noised_samples_and_targets_of_flow_matching(timesteps) -> None:
    clean = torch.randn(1, 4, 8, 8)
    recording = renoise(clean, stable_diffusion_3(), ["a cat"], timesteps=timesteps)
    for call, noise in zip(recording.calls, noise_of(0, 3), strict=False):
        level = call.timestep / 1000
        close(call.sample[0], (1 - level) * clean[0] + level * noise)
        close(call.target[0], noise - clean[0])
        assert call.inputs["timestep"].shape == (1,)
    assert recording.prediction_type == "flow_prediction"


def test_a_perfect_denoiser_of_the_recorded_latents_would_hit_the_target() -> None:
    """The pipeline's first step from pure noise and the target agree on the direction of time and sign."""
    pipeline = stable_diffusion()
    clean = torch.randn(1, 4, 8, 8)
    call = renoise(clean, pipeline, ["a cat"], timesteps=[500]).calls[0]
    scheduler = copy.deepcopy(pipeline.scheduler)
    scheduler.set_timesteps(10)
    close(scheduler.step(call.target, 500, call.sample).pred_original_sample, clean, 1e-4)


def test_generated_images_are_noised_with_their_own_prompts() -> None:
    pipeline, recording = make("sdxl")
    noised = renoise(recording, pipeline, timesteps=[500])
    assert noised.prompts == PROMPTS and torch.equal(noised.latents, recording.latents)
    text = "encoder_hidden_states"
    close(noised.calls[0].inputs[text], recording.calls[0].inputs[text])
    output = noised.calls[0].run(pipeline.unet)
    assert output.shape == noised.calls[0].target.shape
    based = with_base(noised, pipeline, "a photo", progress=False)
    assert based.calls[0].base_output.shape == output.shape
    noised.check(pipeline.unet)


def test_images_are_encoded_by_the_vae(tmp_path) -> None:
    pipeline = stable_diffusion()
    images = [Image.new("RGB", (31, 17), color) for color in ("red", "blue")]
    recording = record_images(pipeline, images, "a cat", timesteps=4)
    pixels = pipeline.image_processor.preprocess(images, height=16, width=16)
    with torch.no_grad():
        mode = pipeline.vae.encode(pixels).latent_dist.mode()
    close(recording.latents, (mode - 0.1) * 0.5)
    assert recording.prompts == ["a cat", "a cat"] and recording.n_steps == 4
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    assert torch.equal(record_images(pipeline, tmp_path, "a cat", timesteps=4).latents, recording.latents)


def test_learned_variances_are_no_part_of_the_prediction() -> None:
    pipeline = pixart()
    call = renoise(torch.randn(1, 4, 8, 8), pipeline, ["a cat"], timesteps=[300], **PIPELINES["pixart"][1]).calls[0]
    with torch.no_grad():
        output = call.run(pipeline.transformer)
    assert output.shape[1] == 8 and torch.equal(call.prediction(output), output[:, :4])


def test_denoising_loss_refuses(tmp_path) -> None:
    pipeline = stable_diffusion()
    packed = {"height": 16, "width": 16, "max_sequence_length": 16}
    image = [Image.new("RGB", (16, 16))]
    cases = [
        (lambda: record_images(flux(), image, "a cat", **packed), "not packed"),
        (lambda: renoise(torch.zeros(1, 4, 8, 8), flux(), "a cat", timesteps=2, **packed), "packed latents"),
        (lambda: renoise(torch.zeros(1, 4, 4, 4), pipeline, "a cat", timesteps=2), "the latents have shape"),
        (lambda: renoise(torch.zeros(1, 4, 8, 8), pipeline, timesteps=2), "prompts are needed"),
        (lambda: renoise(torch.zeros(1, 4, 8, 8), pipeline, "a cat", timesteps=[1000]), "whole numbers below 1000"),
        (lambda: renoise(torch.zeros(1, 4, 8, 8), pipeline, "a cat", timesteps=[-1]), "from 0 to 1000"),
        (lambda: renoise(torch.zeros(1, 4, 8, 8), pipeline, "a cat", timesteps=[]), "empty"),
        (lambda: renoise(torch.zeros(1, 4, 8, 8), pipeline, "a cat", timesteps=0), "at least 1"),
        (lambda: record_images(pipeline, tmp_path, "a cat"), "holds no images"),
        (lambda: record_images(pipeline, image, ["a", "b"]), "2 prompts for 1 images"),
    ]
    for make_it, message in cases:
        with pytest.raises(ValueError, match=message):
            make_it()
