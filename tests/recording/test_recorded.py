"""What is recorded, against loops written by hand, on tiny pipelines of several families."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import DDIMScheduler

from cad_fast.diffusion.denoisers import denoiser_of
from cad_fast.recording.data import Recording
from cad_fast.recording.record import record, with_base
from cad_fast.recording.renoise import renoise
from tests.pipelines import PIPELINES, UNGUIDED, stable_diffusion
from tests.recording.common import PROMPTS, STEPS, assert_same, close, every_pipeline, make


@every_pipeline
def test_replay_reproduces_every_output(name: str) -> None:
    pipeline, recording = make(name)
    denoiser = denoiser_of(pipeline)
    recording.check(denoiser)
    assert (recording.n_rows, recording.n_steps, recording.denoiser_calls) == (3, STEPS, STEPS + 1)  # one is replayed
    with torch.no_grad():
        for call in recording.calls:
            close(call.run(denoiser), call.output)
            if name in UNGUIDED:
                assert call.unconditional_output is None and call.unconditional_inputs is None
            else:
                unconditional = denoiser(**call.unconditional_inputs)[0]
                close(unconditional, call.unconditional_output)
                assert not torch.allclose(unconditional, call.output, atol=1e-6)


@every_pipeline
def test_recording_does_not_change_the_images(name: str) -> None:
    _, more = PIPELINES[name]
    pipeline, recording = make(name, seeds=[5, 6, 7])
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)]
    if "negative_prompt" in more:  # of one for all, FluxPipeline makes one row
        more = {**more, "negative_prompt": [more["negative_prompt"]] * 3}
    plain = pipeline(PROMPTS, generator=generators, num_inference_steps=STEPS, output_type="latent", **more)[0]
    assert torch.equal(recording.latents, plain)


@every_pipeline
def test_rows_do_not_depend_on_their_batch(name: str) -> None:
    _, together = make(name, seeds=10)
    _, batched = make(name, seeds=10, batch_size=2)
    assert_same(together, batched)
    assert batched.denoiser_calls == 2 * STEPS + 1
    _, alone = make(name, PROMPTS[1:2], seeds=[11])
    assert_same(together.select(rows=[1]), alone)


def test_recorded_calls_equal_a_loop_written_by_hand() -> None:
    pipeline, recording = make("sd", seeds=3, guidance_scale=4.0, negative_prompt="a house")
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        positive, negative = pipeline.encode_prompt(PROMPTS, "cpu", 1, True, negative_prompt=["a house"] * 3)
        latents = torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3 + i)) for i in range(3)])
        for timestep, call in zip(scheduler.timesteps, recording.calls, strict=True):
            conditional = pipeline.unet(latents, timestep, positive).sample
            unconditional = pipeline.unet(latents, timestep, negative).sample
            assert call.timestep == float(timestep)
            close(call.sample, latents)
            close(call.output, conditional)
            close(call.unconditional_output, unconditional)
            guided = unconditional + 4.0 * (conditional - unconditional)
            latents = scheduler.step(guided, timestep, latents).prev_sample
    close(recording.latents, latents)
    assert recording.prediction_type == "epsilon" and recording.generation.guidance_scale == 4.0
    assert recording.scheduler_config["_class_name"] == "DDIMScheduler"


@pytest.mark.parametrize("name", ["sdxl", "sd3", "pixart"])
def test_halves_are_the_prompt_and_the_negative_prompt(name: str) -> None:
    _, recording = make(name, negative_prompt="a house")
    _, swapped = make(name, ["a house"], negative_prompt=PROMPTS[0])
    text = "encoder_hidden_states"
    close(recording.calls[0].inputs[text][0], swapped.calls[0].unconditional_inputs[text][0])
    close(recording.calls[0].unconditional_inputs[text][0], swapped.calls[0].inputs[text][0])


def test_separate_calls_are_the_prompt_and_the_negative_prompt() -> None:
    pipeline, recording = make("flux-true-cfg")
    with torch.no_grad():
        cat = pipeline.encode_prompt("a cat", None, max_sequence_length=16)[0]
        dog = pipeline.encode_prompt("dog", None, max_sequence_length=16)[0]
    call = recording.calls[1]
    close(call.inputs["encoder_hidden_states"][2], dog[0])
    close(call.unconditional_inputs["encoder_hidden_states"][0], cat[0])


@pytest.mark.parametrize(
    ("name", "expected"),
    [("sd", "epsilon"), ("sd-v", "v_prediction"), ("sd3", "flow_prediction"), ("flux", "flow_prediction")],
)
def test_prediction_type(name: str, expected: str) -> None:
    assert make(name)[1].prediction_type == expected


@every_pipeline
def test_inputs_that_do_not_change_are_stored_once(name: str, tmp_path) -> None:
    _, recording = make(name, batch_size=2)
    loaded = Recording.load(recording.save(tmp_path))
    for each in (recording, recording.select(rows=[2, 0]), loaded):
        first, last = each.calls[0], each.calls[-1]
        assert first.inputs["encoder_hidden_states"] is last.inputs["encoder_hidden_states"]
        assert first.sample is not last.sample
        if first.unconditional_inputs is not None:
            assert first.unconditional_inputs[first.sample_key] is first.sample
    assert loaded.nbytes == recording.nbytes
    assert (tmp_path / "recording.safetensors").stat().st_size < recording.nbytes + 20_000


def test_dtype_is_kept() -> None:
    pipeline = copy.deepcopy(stable_diffusion()).to(torch.bfloat16)
    recording = record(pipeline, PROMPTS, num_inference_steps=2, progress=False)
    assert recording.calls[0].output.dtype == recording.calls[0].sample.dtype == torch.bfloat16
    recording.check(pipeline.unet)


def test_images_are_kept_on_request(tmp_path) -> None:
    _, recording = make("sd", keep_images=True)
    assert [image.size for image in recording.images] == [(16, 16)] * 3
    assert torch.equal(recording.latents, make("sd")[1].latents)
    loaded = Recording.load(recording.save(tmp_path))
    assert [image.tobytes() for image in loaded.images] == [image.tobytes() for image in recording.images]
    (tmp_path / "images" / "00001.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"00001\.png is missing or damaged"):
        Recording.load(tmp_path)


def test_recorded_tensors_can_be_used_for_gradients() -> None:
    with torch.inference_mode():
        pipeline, recording = make("sd")
    sample = recording.calls[0].sample.clone().requires_grad_()
    recording.calls[0].run(pipeline.unet, sample=sample).square().sum().backward()
    assert sample.grad.abs().sum() > 0


def test_lists_with_one_entry_per_prompt_are_split_with_the_batches() -> None:
    negatives = ["a house", "a cat", "a ship"]
    _, recording = make("sd", negative_prompt=negatives, batch_size=2)
    assert recording.row_kwargs == {"negative_prompt": negatives}
    assert recording.select(rows=[2]).row_kwargs == {"negative_prompt": ["a ship"]}
    assert_same(recording, make("sd", negative_prompt=negatives)[1])


def test_hooks_and_bars_are_undone_after_an_exception() -> None:
    pipeline = stable_diffusion()
    bars = pipeline._progress_bar_config

    def fail(*_):
        raise RuntimeError("out of paper")

    with pytest.raises(RuntimeError, match="out of paper"):
        record(pipeline, PROMPTS, num_inference_steps=2, progress=False, callback_on_step_end=fail)
    assert not pipeline.unet._forward_hooks
    assert "step" not in vars(pipeline.scheduler)
    assert pipeline._progress_bar_config is bars


def test_scheduler_and_config_are_as_before() -> None:
    pipeline, recording = make("sd-v")
    scheduler, config, state = pipeline.scheduler, dict(pipeline.config), copy.deepcopy(vars(pipeline.scheduler))
    with_base(recording, pipeline, "a photo", progress=False)
    renoise(recording, pipeline, timesteps=[100, 900])
    assert pipeline.scheduler is scheduler and dict(pipeline.config) == config
    assert vars(scheduler).keys() == state.keys()
    for name, value in vars(scheduler).items():
        same = torch.equal(value, state[name]) if isinstance(value, torch.Tensor) else value == state[name]
        assert same, name
    assert not pipeline.unet._forward_hooks
