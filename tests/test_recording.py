"""Recording against loops written by hand, on tiny pipelines of several families and on toys of odd guidance."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import nn

from cad_fast.denoiser_calls import DenoiserCall
from cad_fast.recording import Recording, denoiser_of, record, record_images, renoise, with_base
from tests.pipelines import PIPELINES, UNGUIDED, flux, pixart, stable_diffusion, stable_diffusion_3, stable_diffusion_xl

PROMPTS = ["a cat", "a red dog", "dog"]
STEPS = 3
every_pipeline = pytest.mark.parametrize("name", PIPELINES)


def make(name: str, prompts: list[str] = PROMPTS, **kwargs):
    factory, more = PIPELINES[name]
    pipeline = factory()
    return pipeline, record(pipeline, prompts, num_inference_steps=STEPS, progress=False, **{**more, **kwargs})


def close(first: torch.Tensor, second: torch.Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance)


def assert_same(first: Recording, second: Recording) -> None:
    """The same, to rounding, in all that generation gives."""
    assert (first.prompts, first.seeds, first.timesteps) == (second.prompts, second.seeds, second.timesteps)
    close(first.latents, second.latents)
    for a, b in zip(first.calls, second.calls, strict=True):
        close(a.sample, b.sample)
        close(a.output, b.output)
        if a.unconditional_output is not None:
            close(a.unconditional_output, b.unconditional_output)


# --- what is recorded -------------------------------------------------------------------------------------------------


@every_pipeline
def test_replay_reproduces_every_output(name: str) -> None:
    pipeline, recording = make(name)
    denoiser = denoiser_of(pipeline)
    recording.check(denoiser)
    assert (recording.n_rows, recording.n_steps, recording.denoiser_calls) == (3, STEPS, STEPS)
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
    assert batched.denoiser_calls == 2 * STEPS
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
    assert recording.prediction_type == "epsilon" and recording.guidance_scale == 4.0
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


# --- guidance of all kinds, on toys -----------------------------------------------------------------------------------


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


# --- what is left behind ----------------------------------------------------------------------------------------------


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


# --- selecting, joining, saving ---------------------------------------------------------------------------------------


def test_select() -> None:
    _, recording = make("sd")
    assert recording.select(steps=[2, 0]).timesteps == [1.0, 667.0]
    assert recording.select(timesteps=(334, 667)).timesteps == [667.0, 334.0]
    some = recording.select(rows=[2, 2, -3])
    assert some.prompts == ["dog", "dog", "a cat"] and some.seeds == [2, 2, 0]
    assert torch.equal(some.calls[1].output, recording.calls[1].output[[2, 2, 0]])
    with pytest.raises(ValueError, match="no recorded call"):
        recording.select(timesteps=(2, 3))
    with pytest.raises(ValueError, match=r"steps \[7\]"):
        recording.select(steps=[7])
    with pytest.raises(IndexError, match="among the 3 rows"):
        recording.select(rows=[3])
    with pytest.raises(ValueError, match="mask"):
        recording.select(rows=[True, False, True])


def test_rows_can_be_repeated_where_a_shared_input_is_as_long() -> None:
    pipeline, recording = make("flux", PROMPTS[:1])
    call = recording.calls[0].select_rows([0] * 16)  # 16 positions, too
    assert call.inputs["img_ids"].shape == (16, 3)
    with torch.no_grad():
        close(call.run(pipeline.transformer)[7], recording.calls[0].output[0])
    _, many = make("flux", ["a cat"] * 16, batch_size=16)
    assert many.select(rows=[0]).calls[0].inputs["img_ids"].shape == (16, 3)


def test_an_input_shared_by_all_rows_stays_shared() -> None:
    """FluxPipeline gives one row of negative prompt to any number; in a batch of one it looks like a row's own."""
    _, full = make("flux-true-cfg")
    shared = full.calls[0].unconditional_inputs["encoder_hidden_states"][:1].clone()
    parts = [full.select(rows=[0, 1]), full.select(rows=[2])]
    for part in parts:
        for call in part.calls:
            call.unconditional_inputs["encoder_hidden_states"] = shared
            call.unconditional_row_paths = None
            call.__post_init__()
    assert "encoder_hidden_states" not in parts[0].calls[0].unconditional_row_paths
    assert "encoder_hidden_states" in parts[1].calls[0].unconditional_row_paths
    joined = Recording.concat(parts)
    for rows in ([0], [2, 1]):
        assert joined.select(rows=rows).calls[0].unconditional_inputs["encoder_hidden_states"] is shared
    assert "3 rows, 3 steps, samples [16, 16]" in repr(joined)


def test_concat() -> None:
    _, first = make("sdxl", PROMPTS[:2])
    _, second = make("sdxl", PROMPTS[2:], seeds=2)
    joined = Recording.concat([first, second])
    assert_same(joined, make("sdxl")[1])
    assert joined.calls[0].inputs["encoder_hidden_states"] is joined.calls[2].inputs["encoder_hidden_states"]
    with pytest.raises(ValueError, match="differ in timesteps"):
        Recording.concat([first, second.select(steps=[0])])
    with pytest.raises(ValueError, match="differ in guidance_scale"):
        Recording.concat([first, make("sdxl", guidance_scale=3.0)[1]])
    with pytest.raises(ValueError, match="different models"):
        Recording.concat([first, make("sd")[1]])
    with pytest.raises(ValueError, match="no recordings"):
        Recording.concat([])


@every_pipeline
def test_save_and_load(name: str, tmp_path) -> None:
    pipeline, recording = make(name)
    recording = with_base(recording, pipeline, "a photo", progress=False)
    loaded = Recording.load(recording.save(tmp_path / "deep" / "folder"))
    assert_same(recording, loaded)
    loaded.check(denoiser_of(pipeline))
    for field in ("guidance_scale", "scheduler_config", "prediction_type", "fingerprint", "denoiser_calls"):
        assert getattr(loaded, field) == getattr(recording, field)
    for a, b in zip(recording.calls, loaded.calls, strict=True):
        assert a.inputs.keys() == b.inputs.keys() and a.row_paths == b.row_paths
        assert torch.equal(a.base_output, b.base_output)
    assert not list(tmp_path.rglob("*.part"))


def test_damaged_files_are_refused(tmp_path) -> None:
    _, recording = make("sd")
    recording.save(tmp_path)
    plain, tensors = tmp_path / "recording.json", tmp_path / "recording.safetensors"
    text, data = plain.read_text(), tensors.read_bytes()

    tensors.write_bytes(data[:-100])
    with pytest.raises(ValueError, match=r"recording\.safetensors is truncated"):
        Recording.load(tmp_path)
    tensors.write_bytes(data)

    damages = {
        text[:-50]: "not valid JSON",
        text.replace('"save_id": "', '"save_id": "0'): "belongs to another save",
        text.replace('"format": 1', '"format": 99'): "format 99",
        text.replace("t00001", "t99999"): "tensor t99999 is missing",
        text.replace('"seeds"', '"sods"'): "entry 'seeds' is missing",
        json.dumps({**json.loads(text), "prompts": ["one"]}): "rows, but there are 1 prompts",
        json.dumps({**json.loads(text), "calls": [3]}): "not a whole recording",
        json.dumps({**json.loads(text), "calls": [{"inputs": {"pickle": 1}}]}): "not a whole recording",
    }
    for damaged, message in damages.items():
        plain.write_text(damaged)
        with pytest.raises(ValueError, match=message):
            Recording.load(tmp_path)
    plain.unlink()
    with pytest.raises(FileNotFoundError):
        Recording.load(tmp_path)


def test_check_tells_another_model() -> None:
    pipeline, recording = make("sd")
    other = copy.deepcopy(pipeline.unet)
    nn.init.normal_(other.conv_in.weight)
    with pytest.raises(ValueError, match="was made for another model"):
        recording.check(other)
    edited = copy.deepcopy(pipeline.unet)
    edited.register_forward_hook(lambda module, args, output: (output[0] * 1.05,))
    with pytest.raises(ValueError, match="another output than recorded: it differs by 5%"):
        recording.check(edited)


# --- base prompts -----------------------------------------------------------------------------------------------------


@every_pipeline
def test_base_output_is_that_of_a_recording_under_the_base_prompt(name: str) -> None:
    """At the first step both have the same sample, so that a recording of the base prompts gives what is expected."""
    pipeline, recording = make(name)
    texts = ["a photo", "photo of a house", "ship"]
    based = with_base(recording, pipeline, texts, batch_size=2, progress=False)
    _, expected = make(name, texts)
    close(based.calls[0].base_output, expected.calls[0].output)
    again = with_base(recording, pipeline, PROMPTS, progress=False)
    for call in again.calls:
        close(call.base_output, call.output)
    assert not torch.allclose(based.calls[2].base_output, based.calls[2].output, atol=1e-6)
    assert based.denoiser_calls == STEPS + 2 * (STEPS + 1)


def test_with_base_refuses() -> None:
    pipeline, recording = make("sd")
    with pytest.raises(ValueError, match="2 base prompts for 3 rows"):
        with_base(recording, pipeline, ["a", "b"])
    with pytest.raises(ValueError, match="another model"):
        with_base(recording, stable_diffusion_xl(), "a")


# --- the denoising loss -----------------------------------------------------------------------------------------------


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


# --- arguments --------------------------------------------------------------------------------------------------------


def test_seeds() -> None:
    _, recording = make("sd", "a cat", seeds=[4, 4])
    assert recording.prompts == ["a cat"] * 2 and torch.equal(recording.latents[0], recording.latents[1])
    assert make("sd")[1].seeds == [0, 1, 2]


def test_arguments_that_do_not_fit_are_refused() -> None:
    pipeline = stable_diffusion()
    for name in ("generator", "num_images_per_prompt", "output_type"):
        with pytest.raises(ValueError, match=name):
            record(pipeline, "a cat", **{name: 2})
    for arguments, message in [
        ({"prompts": []}, "no prompts"),
        ({"prompts": ["a"], "seeds": [1, 2]}, "1 prompts and 2 seeds"),
        ({"prompts": "a", "batch_size": 0}, "batch_size is 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            record(pipeline, **arguments)


def test_denoiser_of() -> None:
    assert denoiser_of(flux()) is flux().transformer
    assert denoiser_of(flux().transformer) is flux().transformer
    with pytest.raises(TypeError, match=r"whose parts are scheduler, vae"):
        denoiser_of(SimpleNamespace(components={"vae": 1, "scheduler": 2}))
    with pytest.raises(TypeError, match="got int"):
        denoiser_of(3)


def test_a_module_that_is_no_denoiser_is_refused() -> None:
    pipeline = SimpleNamespace(unet=nn.Linear(2, 2), scheduler=None)
    with pytest.raises(ValueError, match=r"Linear\.forward takes \(input\)"):
        record(_Callable(pipeline.unet), "a cat", progress=False)


class _Callable:
    def __init__(self, unet: nn.Module) -> None:
        self.unet = unet

    def __call__(self, prompt, generator):
        return [self.unet(torch.zeros(1, 2))]


def test_calls_made_by_hand() -> None:
    call = DenoiserCall(
        step=0,
        timestep=torch.tensor([1.0, 2.0]),
        inputs={"sample": torch.zeros(2, 4, 2, 2), "timestep": torch.tensor([1, 2]), "text": [torch.ones(2, 3), None]},
        sample_key="sample",
        output=torch.zeros(2, 4, 2, 2),
    )
    assert call.row_paths == {"sample", "timestep", "text.0"} and call.rows == 2
    assert call.select_rows(torch.tensor([1])).timestep.tolist() == [2.0]
    assert "rows=2, with output" in repr(call)
    with pytest.raises(ValueError, match="output has shape"):
        DenoiserCall(0, 1.0, call.inputs, "sample", output=torch.zeros(3))
    with pytest.raises(ValueError, match="'latents' is not a tensor"):
        DenoiserCall(0, 1.0, call.inputs, "latents", output=None)
