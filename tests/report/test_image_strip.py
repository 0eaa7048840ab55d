"""A picture drawn again under strengths: from its own noise, right at 0, and edited as the pipeline would be."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, LCMScheduler
from PIL import Image

import cad_fast
from cad_fast import zoo
from cad_fast.cli import main
from cad_fast.diffusion.denoisers import denoiser_of
from cad_fast.recording.inversion import backwards, inverted_noise, refusal
from tests.edits.test_manager import edits_of
from tests.pipelines import flux, stable_diffusion

STEPS = 20


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=float) / 255


@pytest.fixture(scope="module", params=zoo.MODELS)
def pipeline(request: pytest.FixtureRequest):
    return zoo.load(request.param)


@pytest.fixture(scope="module")
def picture():
    """A picture and its caption."""
    files, captions = zip(*zoo.pictures("car"), strict=True)
    return zoo.opened(files[:1])[0], captions[0]


def test_the_picture_comes_out_again(pipeline, picture) -> None:
    """Drawn from its own noise it is near; other noise draws another picture."""
    image, caption = picture
    recording = cad_fast.record_images(pipeline, [image], caption, timesteps=STEPS)
    noise = inverted_noise(pipeline, recording, fixed_points=3)
    assert 0.7 < float(noise.std()) < 1.3

    def drawn(latents: torch.Tensor) -> np.ndarray:
        settings = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "output_type": "pil"}
        return pixels(pipeline(caption, latents=latents, **zoo_arguments(pipeline), **settings).images[0])

    others = torch.randn(noise.shape, generator=torch.Generator().manual_seed(1))
    near, far = (abs(drawn(latents) - pixels(image)).mean() for latents in (noise, others))
    assert near < 0.06 < far


def zoo_arguments(pipeline) -> dict:
    return dict(zoo.generation(zoo.name_of(pipeline)).arguments)


def test_fixed_points_come_near_the_way_there(pipeline, picture) -> None:
    """Each step forwards from where a step backwards led must lead back; the corrections are what makes it."""
    image, caption = picture
    recording = cad_fast.record_images(pipeline, [image], caption, timesteps=4)
    assert recording.latents is not None
    errors = []
    for count in (0, 6):
        before, error = recording.latents.float(), 0.0
        for call, after in backwards(pipeline, recording, fixed_points=count):
            error += unexplained(pipeline, recording, call, before, after)
            before = after
        errors.append(error)
    assert errors[1] < 0.2 * errors[0]


def unexplained(pipeline, recording, call, before, after) -> float:
    """How far the output at the end of a step is from the one that the step took, which the samples tell."""
    with torch.no_grad():
        there = call.run(denoiser_of(pipeline), **{call.sample_key: after}).float()
    order = sorted(each.timestep for each in recording.calls)
    position = order.index(call.timestep)
    if recording.prediction_type == "flow_prediction":
        low, high = (order[position - 1] if position else 0.0) / 1000, order[position] / 1000
        used = (after - before) / (high - low)
    else:
        kept = pipeline.scheduler.alphas_cumprod
        low = float(kept[int(order[position - 1])]) if position else float(pipeline.scheduler.final_alpha_cumprod)
        high = float(kept[int(order[position])])
        slope = (1 - high) ** 0.5 - (high * (1 - low) / low) ** 0.5
        used = (after - (high / low) ** 0.5 * before) / slope
    return float((there - used).norm())


def test_strengths_are_those_of_the_edit(picture) -> None:
    """At 0 nothing changes; elsewhere the picture is that of the edit in the weights."""
    image, caption = picture
    pipeline = zoo.load()
    edit = next(iter(edits_of(pipeline).values()))
    strip = cad_fast.image_strip(pipeline, edit, image, caption, (1.0, 0.0, -1.0), num_inference_steps=6)
    assert strip.changed[1] == {"inside": 0.0, "outside": 0.0} and strip.strengths == [1.0, 0.0, -1.0]
    assert 0 < strip.mask.float().mean() < 1 and strip.mask.shape == image.size
    noise = inverted_noise(pipeline, cad_fast.record_images(pipeline, [image], caption, timesteps=6), fixed_points=3)
    with edit.applied(pipeline):
        expected = pipeline(caption, latents=noise, num_inference_steps=6, guidance_scale=1.0).images[0]
    assert abs(pixels(strip.images[0]) - pixels(expected)).max() < 0.02
    assert strip.changed[0]["inside"] > 0 and strip.sheet.width > image.width


def test_what_has_no_way_back_is_refused() -> None:
    pipeline = stable_diffusion()
    pipeline.scheduler.register_to_config(prediction_type="v_prediction")
    edit = next(iter(edits_of(pipeline).values()))
    with pytest.raises(ValueError, match="cannot be turned into noise: DDIMScheduler predicts v_prediction"):
        cad_fast.image_strip(pipeline, edit, Image.new("RGB", (64, 64)), "a cat", num_inference_steps=2)
    with pytest.raises(ValueError, match="no strengths"):
        cad_fast.image_strip(pipeline, edit, Image.new("RGB", (64, 64)), "a cat", ())
    with pytest.raises(ValueError, match="no edits"):
        cad_fast.image_strip(pipeline, [], Image.new("RGB", (64, 64)), "a cat")
    packed = flux()
    edit = next(iter(edits_of(packed).values()))
    with pytest.raises(ValueError, match="not packed"):
        cad_fast.image_strip(packed, edit, Image.new("RGB", (64, 64)), "a cat", num_inference_steps=2)


def test_schedulers_that_add_noise_are_refused(pipeline, picture) -> None:
    recording = cad_fast.record_images(pipeline, [picture[0]], picture[1], timesteps=2)
    assert refusal(pipeline, recording) is None
    config = pipeline.scheduler.config
    if recording.prediction_type == "flow_prediction":
        noisy = [type(pipeline.scheduler).from_config(config, stochastic_sampling=True)]
    else:
        noisy = [each.from_config(config) for each in (DDPMScheduler, EulerAncestralDiscreteScheduler, LCMScheduler)]
        noisy += [DPMSolverMultistepScheduler.from_config(config, algorithm_type="sde-dpmsolver++")]
    for scheduler in noisy:
        reason = refusal(SimpleNamespace(scheduler=scheduler), recording)
        assert reason is not None and type(scheduler).__name__ in reason and "adds new noise" in reason


def test_from_the_command_line(tmp_path, picture, capsys: pytest.CaptureFixture[str]) -> None:
    image, caption = picture
    image.save(tmp_path / "car.png")
    edit = next(iter(edits_of(zoo.load()).values()))
    edit.save_pretrained(tmp_path / "edit")
    common = ["dial", "zoo:emoji", "--edit", str(tmp_path / "edit"), "--steps", "4", "--strength", "1", "0", "--json"]
    common += ["-o", str(tmp_path / "strip.png"), "--image"]
    assert main([*common, str(tmp_path / "car.png"), "--prompt", caption]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["changed"][1] == {"inside": 0.0, "outside": 0.0} and 0 < found["redrawn"] < 0.5
    assert (tmp_path / "strip.png").stat().st_size > 1000
    assert main([*common, str(tmp_path / "car.png"), "--prompt", "a", "--prompt", "b"]) == 2
    assert "takes one --prompt" in capsys.readouterr().err
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert main([*common, str(tmp_path / "broken.png"), "--prompt", caption]) == 2
    assert "not a readable image" in capsys.readouterr().err
