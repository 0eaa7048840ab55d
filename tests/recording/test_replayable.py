"""What cannot be run again is refused when it is recorded, by the name of what is in the way."""

import copy

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

import cad_fast
from cad_fast.recording.watch import DenoiserWatch
from tests.pipelines import flux, stable_diffusion, stable_diffusion_xl


class Toy(nn.Module):
    """A denoiser that reads states [layers, rows, width], rows in the second dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, hidden_states, timestep, states=None):
        if states is not None:
            hidden_states = hidden_states + states.sum(0)
        return self.linear(hidden_states)


class ToyPipeline:
    """Guidance in one batch, with one denoiser or two: the second for the later half of the steps."""

    def __init__(self, layers: int = 0, second: bool = False) -> None:
        torch.manual_seed(0)
        self.transformer = Toy().requires_grad_(False)
        self.transformer_2 = Toy().requires_grad_(False) if second else None
        self.scheduler = FlowMatchEulerDiscreteScheduler()
        self.layers = layers

    @property
    def components(self):
        return {"transformer": self.transformer, "transformer_2": self.transformer_2, "scheduler": self.scheduler}

    def __call__(self, prompt, generator, num_inference_steps=4, guidance_scale=3.0):
        x = torch.cat([torch.randn(1, 4, generator=each) for each in generator])
        states = torch.randn(self.layers, 2 * len(prompt), 4) if self.layers else None
        self.scheduler.set_timesteps(num_inference_steps)
        for step, t in enumerate(self.scheduler.timesteps):
            denoiser = (
                self.transformer_2 if self.transformer_2 and 2 * step >= num_inference_steps else self.transformer
            )
            y = denoiser(torch.cat([x, x]), t.expand(2 * len(x)), **({"states": states} if self.layers else {}))
            unconditional, conditional = y.chunk(2)
            guided = unconditional + guidance_scale * (conditional - unconditional)
            x = self.scheduler.step(guided, t, x, return_dict=False)[0]
        return (x,)


@pytest.mark.parametrize("prompts", [1, 2, 3])
def test_rows_in_the_second_dimension(prompts) -> None:
    with pytest.raises(ValueError, match=r"cannot be replayed.*states \[|states \[.*cannot be told apart"):
        cad_fast.record(ToyPipeline(layers=5), ["a cat"] * prompts, progress=False)


def test_one_of_two_denoisers_has_to_be_named() -> None:
    pipeline = ToyPipeline(second=True)
    with pytest.raises(ValueError, match=r"'transformer_2' beside 'transformer'.*PipelinePart"):
        cad_fast.record(pipeline, "a cat", progress=False)
    first = cad_fast.record(cad_fast.PipelinePart(pipeline, "transformer"), "a cat", progress=False)
    second = cad_fast.record(cad_fast.PipelinePart(pipeline, "transformer_2"), "a cat", progress=False)
    assert first.n_steps == second.n_steps == 2
    assert sorted(first.timesteps + second.timesteps, reverse=True) == first.timesteps + second.timesteps
    low = cad_fast.PipelinePart(pipeline, "transformer_2")
    space = cad_fast.ComponentSpace.of(low, "weight", "all")
    edit = cad_fast.Edit.from_indices("low", space, torch.tensor([0, 5]))
    before = pipeline.transformer_2.linear.weight.clone()
    with edit.applied(low):
        assert not torch.equal(pipeline.transformer_2.linear.weight, before)
    assert torch.equal(pipeline.transformer_2.linear.weight, before)
    of_part = cad_fast.PipelinePart(low, "transformer")
    assert repr(of_part) == "PipelinePart(ToyPipeline, 'transformer')", "of the whole pipeline"
    assert cad_fast.EditManager(low).get_list_edits() == {"transformer_2": []}


def test_the_scheduler_that_steps_the_part_is_watched() -> None:
    """The first stage has a scheduler of its own, and its conditional rows come first."""

    class Stages(ToyPipeline):
        def __call__(self, prompt, generator, num_inference_steps=4, guidance_scale=3.0):
            x = torch.cat([torch.randn(1, 4, generator=each) for each in generator])
            text = torch.tensor([[1.0]] * len(prompt) + [[0.0]] * len(prompt))
            self.prior_scheduler.set_timesteps(num_inference_steps)
            for t in self.prior_scheduler.timesteps:
                output = self.transformer_2(torch.cat([x, x]), t.expand(2 * len(x)), text)
                conditional, unconditional = output.chunk(2)
                guided = unconditional + guidance_scale * (conditional - unconditional)
                x = self.prior_scheduler.step(guided, t, x, return_dict=False)[0]
            return (x,)

    class Texts(Toy):
        def forward(self, hidden_states, timestep, text):
            return self.linear(hidden_states + text)

    pipeline = Stages(second=True)
    pipeline.transformer_2 = Texts().requires_grad_(False)
    pipeline.prior_scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    watch = DenoiserWatch(cad_fast.PipelinePart(pipeline, "transformer_2"), 1)
    with watch, torch.no_grad():
        pipeline(["a cat"], [torch.Generator().manual_seed(0)])
    assert watch.scheduler is pipeline.prior_scheduler
    weight = pipeline.transformer_2.linear.weight
    for call in watch.calls:
        torch.testing.assert_close(call.output - call.unconditional_output, weight.sum(1)[None])
    assert "step" not in vars(pipeline.prior_scheduler) and "step" not in vars(pipeline.scheduler)


def test_parts_are_named() -> None:
    pipeline = ToyPipeline(second=True)
    with pytest.raises(ValueError, match="no denoiser 'unet'; it has transformer, transformer_2"):
        cad_fast.PipelinePart(pipeline, "unet")
    part = cad_fast.PipelinePart(pipeline, "transformer_2")
    part.scheduler = None
    assert pipeline.scheduler is None and part.layers == 0
    pipeline.transformer = None
    assert cad_fast.ComponentSpace.of(pipeline, "weight", "all").n == 16, "the only one there is"


def test_a_cache_is_refused() -> None:
    pipeline = copy.deepcopy(flux())
    pipeline.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match="disable_cache"):
        cad_fast.record(pipeline, "a cat", progress=False, num_inference_steps=2, height=16, width=16)


def test_a_pipeline_that_takes_no_prompt() -> None:
    class Classes(ToyPipeline):
        def __call__(self, class_labels, generator, **kwargs):
            return super().__call__(class_labels, generator)

    with pytest.raises(ValueError, match="Classes takes no argument 'prompt', only: class_labels, generator"):
        cad_fast.record(Classes(), "a cat", progress=False)


def test_text_that_is_repeated_for_every_frame() -> None:
    base = copy.deepcopy(stable_diffusion())
    unet = diffusers.UNetMotionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlockMotion", "CrossAttnDownBlockMotion"),
        up_block_types=("CrossAttnUpBlockMotion", "UpBlockMotion"),
        norm_num_groups=4,
        cross_attention_dim=16,
        num_attention_heads=2,
        motion_num_attention_heads=2,
        motion_max_seq_length=8,
        use_motion_mid_block=False,
    ).requires_grad_(False)
    parts = {"vae": base.vae, "text_encoder": base.text_encoder, "tokenizer": base.tokenizer}
    pipeline = diffusers.AnimateDiffPipeline(**parts, unet=unet, motion_adapter=None, scheduler=base.scheduler)
    with pytest.raises(ValueError, match=r"encoder_hidden_states \[6, \d+, 16\] does not have one entry for each"):
        cad_fast.record(pipeline, "a cat", progress=False, num_inference_steps=2, num_frames=3, height=16, width=16)


def test_embeddings_in_place_of_prompts() -> None:
    pipeline = copy.deepcopy(stable_diffusion_xl())
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    embeds = dict(zip(names, pipeline.encode_prompt(["a cat", "a dog"], device="cpu"), strict=True))
    options = {"num_inference_steps": 2, "progress": False, "seeds": 3}
    by_text = cad_fast.record(pipeline, ["a cat", "a dog"], **options)
    for labels in (None, ["one", "two"]):
        recording = cad_fast.record(pipeline, labels, **options, **embeds)
        assert recording.prompts == (labels or ["", ""]) and recording.not_kept == sorted(names)
        torch.testing.assert_close(recording.calls[1].output, by_text.calls[1].output)
    batched = cad_fast.record(pipeline, None, batch_size=1, **options, **embeds)
    torch.testing.assert_close(batched.calls[1].output, by_text.calls[1].output, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match=r"made with negative_pooled_prompt_embeds, .*which it could not keep"):
        cad_fast.renoise(recording, pipeline, timesteps=2)
    noised = cad_fast.renoise(recording, pipeline, timesteps=2, **embeds)
    expected = cad_fast.renoise(by_text, pipeline, timesteps=2)
    torch.testing.assert_close(
        noised.calls[0].inputs["encoder_hidden_states"], expected.calls[0].inputs["encoder_hidden_states"]
    )
    with pytest.raises(ValueError, match="pass prompts, or prompt_embeds"):
        cad_fast.record(pipeline, None, **options)


def test_what_was_not_kept_is_stored(tmp_path) -> None:
    pipeline = copy.deepcopy(stable_diffusion())
    embeds = pipeline.encode_prompt(["a cat"], "cpu", 1, False)[0]
    recording = cad_fast.record(
        pipeline, None, prompt_embeds=embeds, negative_prompt="", num_inference_steps=1, progress=False
    )
    recording.save(tmp_path)
    assert cad_fast.Recording.load(tmp_path).not_kept == ["prompt_embeds"]


def test_a_cache_that_was_applied_by_a_function() -> None:
    pipeline = copy.copy(flux())
    pipeline.transformer = copy.deepcopy(pipeline.transformer)
    settings = diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 1001),
        current_timestep_callback=lambda: 500,
    )
    diffusers.apply_pyramid_attention_broadcast(pipeline.transformer, settings)
    arguments = {"num_inference_steps": 2, "height": 16, "width": 16, "max_sequence_length": 16, "progress": False}
    with pytest.raises(ValueError, match=r"PyramidAttentionBroadcastHook.*Remove it first \(.*remove_hook"):
        cad_fast.record(pipeline, "a cat", **arguments)
    hooks = diffusers.hooks.HookRegistry.check_if_exists_or_initialize(pipeline.transformer)
    hooks.remove_hook("pyramid_attention_broadcast", recurse=True)
    assert cad_fast.record(pipeline, "a cat", **arguments).n_steps == 2
