"""Edits in modular pipelines of diffusers, built from the components of ordinary ones."""

import copy

import diffusers
import pytest
import torch

import cad_fast
from cad_fast import zoo
from cad_fast.diffusion.denoisers import denoiser_of
from cad_fast.edits import EditManager
from cad_fast.integrations.diffusers_hooks import apply_cad_fast_edit, remove_cad_fast_edit
from cad_fast.serving.edit_library import EditLibrary
from cad_fast.serving.server import Server
from cad_fast.zoo.prompt_set import emoji_prompts
from tests.edits.rows.test_row_edits import random_edit
from tests.pipelines import flux, stable_diffusion_3, stable_diffusion_xl
from tests.row_truth import distance

modular = pytest.importorskip("diffusers.modular_pipelines")

PROMPTS = ["a cat", "a dog"]
STEPS = 3


class EmojiBlock(modular.ModularPipelineBlocks):
    """The path of a Stable Diffusion pipeline as a block, guided by a guider: diffusers has none for this model."""

    @property
    def expected_components(self):
        kinds = {
            "tokenizer": object,
            "text_encoder": torch.nn.Module,
            "unet": diffusers.UNet2DConditionModel,
            "vae": diffusers.AutoencoderKL,
            "scheduler": diffusers.DDIMScheduler,
        }
        guider = modular.ComponentSpec(
            "guider",
            diffusers.ClassifierFreeGuidance,
            config=diffusers.configuration_utils.FrozenDict({"guidance_scale": 3.0}),
            default_creation_method="from_config",
        )
        return [*(modular.ComponentSpec(name, kind) for name, kind in kinds.items()), guider]

    @property
    def inputs(self):
        return [modular.InputParam(name) for name in ("prompt", "generator", "num_inference_steps")]

    @property
    def intermediate_outputs(self):
        return [modular.OutputParam("images")]

    @torch.no_grad()
    def __call__(self, components, state):
        block = self.get_block_state(state)
        texts = self.embedded(components, block.prompt), self.embedded(components, [""] * len(block.prompt))
        unet, scheduler, guider = components.unet, components.scheduler, components.guider
        shape = (unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
        x = torch.stack([torch.randn(shape, generator=each) for each in block.generator])
        scheduler.set_timesteps(block.num_inference_steps)
        for step, time in enumerate(scheduler.timesteps):
            guider.set_state(step=step, num_inference_steps=block.num_inference_steps, timestep=time)
            branches = guider.prepare_inputs({"sample": (x, x), "text": texts})
            for branch in branches:
                guider.prepare_models(unet)
                branch.noise_pred = unet(branch.sample, time, branch.text, return_dict=False)[0]
                guider.cleanup_models(unet)
            x = scheduler.step(guider(branches).pred, time, x).prev_sample
        block.images = x
        self.set_block_state(state, block)
        return components, state

    @staticmethod
    def embedded(components, texts):
        tokens = components.tokenizer(
            texts,
            padding="max_length",
            max_length=components.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return components.text_encoder(tokens.input_ids)[0]


def zoo_pipeline():
    return cad_fast.load_pipeline("zoo:emoji")


FAMILIES = {
    "emoji": (zoo_pipeline, EmojiBlock, {}),
    # Without a negative prompt its two branches have the same texts.
    "sd3": (stable_diffusion_3, modular.StableDiffusion3AutoBlocks, {"output_type": "latent", "negative_prompt": ""}),
    "sdxl": (stable_diffusion_xl, modular.StableDiffusionXLAutoBlocks, {"output_type": "latent"}),
    "flux": (flux, modular.FluxAutoBlocks, {"output_type": "latent", "max_sequence_length": 16}),
}
SIZED = {"sd3", "sdxl", "flux"}
GUIDED = ["emoji", "sd3", "sdxl"]
# In Flux's all prompts share one timestep of one row: layers that embed it cannot have edits of rows.
TARGETS = {"flux": ["to_q", "to_k", "to_v", "net.2", "proj_mlp"]}


def built(name, blocks=None):
    """A modular pipeline, of which nobody else has the denoiser or the scheduler, and the arguments of its call."""
    source, kind, more = FAMILIES[name]
    pipeline = (blocks or kind)().init_pipeline()
    parts = {part: getattr(source(), part, None) for part in pipeline.blocks.component_names}
    own = {"unet", "transformer", "scheduler"}
    known = {part: copy.deepcopy(it) if part in own else it for part, it in parts.items() if it is not None}
    pipeline.update_components(**known)
    return pipeline, {**more, **({"height": 16, "width": 16} if name in SIZED else {})}


def draw(run, more, prompts=PROMPTS, images=1, **arguments):
    generators = [torch.Generator().manual_seed(7 + i) for i in range(len(prompts) * images)]
    output = "latents" if "output_type" in more else "images"
    several = {"num_images_per_prompt": images} if images > 1 else {}
    return run(
        prompt=prompts, num_inference_steps=STEPS, generator=generators, output=output, **several, **more, **arguments
    )


def with_edit(name):
    pipeline, more = built(name)
    edit = random_edit(denoiser_of(pipeline), "a", 1, target=TARGETS.get(name, "all"))
    plain = draw(pipeline, more)
    with edit.applied(pipeline):
        edited = draw(pipeline, more)
    assert distance(edited, plain) > 5e-3
    return pipeline, more, edit, plain, edited


def test_the_block_of_these_tests_draws_what_the_pipeline_draws() -> None:
    pipeline, more = built("emoji")
    generators = [torch.Generator().manual_seed(7 + i) for i in range(2)]
    expected = zoo_pipeline()(
        PROMPTS, generator=generators, num_inference_steps=STEPS, guidance_scale=3.0, output_type="latent"
    ).images
    assert distance(draw(pipeline, more), expected) < 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_active_edits_and_hooks(name) -> None:
    pipeline, more, edit, plain, edited = with_edit(name)
    manager = EditManager(pipeline)
    manager.load_edit(edit)
    manager.set_edits("a")
    assert distance(draw(pipeline, more), edited) < 1e-4
    with pytest.raises(RuntimeError, match="cannot be replaced while an EditManager has edits active"):
        pipeline.update_components(**{manager._part: copy.deepcopy(denoiser_of(built(name)[0]))})
    manager.disable_edits()
    assert torch.equal(draw(pipeline, more), plain)
    manager.set_edits("a")
    manager.fuse_edits()
    assert torch.equal(draw(pipeline, more), edited)
    manager.close()
    apply_cad_fast_edit(pipeline, edit)
    assert distance(draw(pipeline, more), edited) < 1e-4
    remove_cad_fast_edit(pipeline)
    assert torch.equal(draw(pipeline, more), plain)


@pytest.mark.parametrize("name", FAMILIES)
def test_edits_per_prompt(name) -> None:
    pipeline, more, edit, plain, edited = with_edit(name)
    manager = EditManager(pipeline)
    manager.load_edit(edit)
    mixed = draw(manager, more, edit_names=["a", "__base__"])
    assert distance(mixed[:1], edited[:1]) < 1e-4 and distance(mixed[1:], plain[1:]) < 1e-4
    with manager.per_prompt(["__base__", "a"]):
        mixed = draw(pipeline, more)
    assert distance(mixed[:1], plain[:1]) < 1e-4 and distance(mixed[1:], edited[1:]) < 1e-4
    if name in SIZED:
        plain = draw(pipeline, more, images=2)
        mixed = draw(manager, more, images=2, edit_names=["a", "__base__"])
        assert distance(mixed[2:], plain[2:]) < 1e-4 < 5e-3 < distance(mixed[:2], plain[:2])


def test_layers_that_see_one_row_for_all_prompts() -> None:
    pipeline, more = built("flux")
    manager = EditManager(pipeline)
    manager.load_edit(random_edit(denoiser_of(pipeline), "a", 1))
    with pytest.raises(ValueError, match="was called with 1 rows, which is no multiple of the denoiser's 2"):
        draw(manager, more, edit_names=["a", "__base__"])


def told_apart(pipeline, seen):
    """Has ``seen`` note of each call of the denoiser whether its texts differ, as those of two prompts do."""

    def note(module, args, kwargs):
        text = kwargs.get("encoder_hidden_states", args[2] if len(args) > 2 else None)
        seen.append(differ(text))

    return denoiser_of(pipeline).register_forward_pre_hook(note, with_kwargs=True)


@pytest.mark.parametrize("same_seed", [False, True])
@pytest.mark.parametrize("name", GUIDED)
def test_the_conditional_branch_alone(name, same_seed) -> None:
    """The guider tells the branches; the truth is told by the texts: the negative ones are all alike."""
    pipeline, more, edit, plain, edited = with_edit(name)
    seen = []
    manager = EditManager(pipeline)
    manager.load_edit(edit)
    rows = manager.row_edits.checked([(("a",),)] * 2)
    handle = told_apart(pipeline, seen)

    def drawn():
        seen.clear()
        generators = [torch.Generator().manual_seed(7 if same_seed else 7 + i) for i in range(2)]
        output = "latents" if "output_type" in more else "images"
        return pipeline(prompt=PROMPTS, num_inference_steps=STEPS, generator=generators, output=output, **more)

    drawn()
    assert seen == [True, False] * STEPS
    # A hook that stands before those of the edits knows the branch of the call that they are asked about.
    with manager.row_edits.rows(lambda facts: rows if differ(facts.inputs["encoder_hidden_states"]) else [()] * 2):
        expected = drawn()
    manager.set_edits("a", branch="conditional")
    assert torch.equal(drawn(), expected)
    handle.remove()
    if not same_seed:
        assert distance(expected, edited) > 1e-4 and distance(expected, plain) > 1e-3
        mixed = draw(manager, more, edit_names=["a", None], branch="conditional")
        assert distance(mixed[:1], expected[:1]) < 1e-4 and distance(mixed[1:], plain[1:]) < 1e-4


def differ(texts):
    """Whether the texts of two rows differ by more than rounding."""
    return not torch.allclose(texts[0], texts[1], atol=1e-4)


def test_guidance_that_skips_layers() -> None:
    """Its third call is conditional, too, and leaves layers out by hooks of its own."""
    pipeline, more = built("sd3")
    skip = diffusers.LayerSkipConfig(indices=[0], fqn="transformer_blocks", skip_attention=False)
    guider = diffusers.SkipLayerGuidance(skip_layer_config=skip, skip_layer_guidance_stop=1.0)
    pipeline.update_components(guider=guider)
    edit = random_edit(denoiser_of(pipeline), "a", 1)
    plain = draw(pipeline, more)
    with edit.applied(pipeline):
        edited = draw(pipeline, more)
    apply_cad_fast_edit(pipeline, edit)
    assert distance(draw(pipeline, more), edited) < 1e-4 < 5e-3 < distance(edited, plain)
    remove_cad_fast_edit(pipeline)
    manager = EditManager(pipeline)
    manager.load_edit(edit)
    seen = []
    told_apart(pipeline, seen)
    rows = manager.row_edits.checked([(("a",),)] * 2)
    with manager.row_edits.rows(lambda facts: rows if differ(facts.inputs["encoder_hidden_states"]) else [()] * 2):
        expected = draw(pipeline, more)
    assert seen == [True, False] + [True, False, True] * (STEPS - 1)  # not in the first step
    manager.set_edits("a", branch="conditional")
    assert torch.equal(draw(pipeline, more), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_recording_is_refused_and_goes_by_an_ordinary_pipeline(name) -> None:
    pipeline, _ = built(name)
    for run in (
        lambda: cad_fast.record(pipeline, PROMPTS, num_inference_steps=STEPS, progress=False),
        lambda: cad_fast.Generation().resolved(pipeline),
        lambda: cad_fast.attribute(pipeline, PROMPTS),
        lambda: cad_fast.evaluate(pipeline, emoji_prompts(), zoo.scorer(), concepts=["car"], progress=False),
        lambda: Server(pipeline, EditLibrary(None, pipeline)),
        lambda: cad_fast.audit(pipeline, "car"),
    ):
        with pytest.raises(ValueError, match=r"is a modular pipeline, .*make an ordinary pipeline of its components"):
            run()


def test_an_edit_made_by_an_ordinary_pipeline_of_the_same_components() -> None:
    pipeline, more = built("emoji")
    parts = {name: part for name, part in pipeline.components.items() if name != "guider"}
    ordinary = diffusers.StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    assert ordinary.unet is pipeline.unet
    recording = cad_fast.record(ordinary, PROMPTS, num_inference_steps=STEPS, guidance_scale=3.0, progress=False)
    attributor = cad_fast.Attributor(ordinary, target_modules="cross-attention-kv", method="gradient")
    scores = attributor.run(recording, concept="cat", progress=False)
    edit = cad_fast.Edit.from_scores(scores, cad_fast.Selection(0.05))
    plain = draw(pipeline, more)
    with edit.applied(ordinary):
        edited = draw(pipeline, more)
    apply_cad_fast_edit(pipeline, edit)
    assert distance(draw(pipeline, more), edited) < 1e-4 < 1e-3 < distance(edited, plain)
