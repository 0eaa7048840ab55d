"""Which rows are conditional: told anew by every run, or an error."""

import copy

import diffusers
import pytest
import torch

from cad_fast.edits import EditManager
from tests.edits.rows.test_row_edits import random_edit
from tests.edits.test_manager import draw, own
from tests.families.registry import FAMILIES
from tests.row_truth import distance

ONE = ["a cat"]


def conditional(name):
    """A pipeline with an edit active on the conditional branch, and its manager."""
    pipeline, more = own(name)
    manager = EditManager(pipeline)
    denoiser = manager.row_edits.inner
    manager.load_edit(random_edit(denoiser, "a", 1), "a")
    manager.set_edits("a", branch="conditional")
    return manager, pipeline, more


def test_one_step_with_the_same_seed_again() -> None:
    for name, guidance in (("sdxl", {"guidance_scale": 0.0}), ("flux", {})):
        manager, pipeline, more = conditional(name)
        settings = {**more, **guidance, "num_inference_steps": 1}
        pictures = [draw(pipeline, ONE, more=settings) for _ in range(3)]
        manager.disable_edits()
        plain = draw(pipeline, ONE, more=settings)
        assert torch.equal(pictures[0], pictures[1]) and torch.equal(pictures[0], pictures[2])
        assert distance(pictures[0], plain) > 1e-3


def test_a_run_after_one_that_was_interrupted() -> None:
    _, pipeline, more = conditional("flux-true-cfg")
    first = draw(pipeline, ONE, more=more)

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = pipeline.transformer.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        draw(pipeline, ONE, more=more)
    handle.remove()
    assert torch.equal(draw(pipeline, ONE, more=more), first)
    unguided = {**more, "true_cfg_scale": 1.0, "num_inference_steps": 1}
    alone = draw(pipeline, ONE, more=unguided)
    draw(pipeline, ONE, more={**more, "num_inference_steps": 1})  # guided, then not, from one seed
    assert torch.equal(draw(pipeline, ONE, more=unguided), alone)


def test_a_denoiser_that_two_pipelines_share() -> None:
    manager, pipeline, more = conditional("flux")
    other = copy.copy(pipeline)
    other.scheduler = copy.deepcopy(pipeline.scheduler)
    expected = draw(pipeline, ONE, more=more)
    with pytest.raises(ValueError, match="called from elsewhere than a call of the pipeline"):
        draw(other, ONE, more=more)
    manager.set_edits("a")  # on both branches there is nothing to tell
    assert torch.equal(draw(other, ONE, more=more), draw(pipeline, ONE, more=more))
    manager.set_edits("a", branch="conditional")
    assert torch.equal(draw(pipeline, ONE, more=more), expected)


@pytest.mark.parametrize("name", ["flux", "pixart"])
def test_two_prompts_from_one_seed_are_not_the_branches(name) -> None:
    """Their halves are equal; neither pipeline has a property that tells whether guidance is on."""
    _, pipeline, more = conditional(name)
    guidance = {} if name == "flux" else {"guidance_scale": 1.0}
    settings = {"num_inference_steps": 2, "output_type": "latent", **more, **guidance}

    def run(prompts):
        generator = [torch.Generator().manual_seed(3) for _ in prompts]
        return pipeline(prompts, generator=generator, **settings)[0]

    both = run(["a cat", "a dog"])
    assert distance(both[:1], run(["a cat"])) < 1e-4 and distance(both[1:], run(["a dog"])) < 1e-4


def test_what_cannot_be_told_is_an_error(monkeypatch) -> None:
    _, pipeline, more = conditional("flux-true-cfg")
    monkeypatch.setattr("cad_fast.edits.rows.running.getattr", lambda *_: None, raising=False)
    with pytest.raises(ValueError, match="scheduler has no timesteps, so it cannot be told where a run begins"):
        draw(pipeline, ONE, more=more)


@pytest.mark.parametrize(("name", "conditional"), [("lumina", 0), ("pixart-sigma", 1)])
@pytest.mark.parametrize("prompts", [["a cat"], [""]])
def test_pipelines_that_put_the_conditional_rows_first(name, conditional, prompts) -> None:
    family = FAMILIES[name]
    if family.missing():
        pytest.skip(family.missing())
    pipeline = family.pipeline()
    outputs = []
    handle = pipeline.transformer.register_forward_hook(lambda _, __, output: outputs.append(output[0].clone()))
    settings = {**family.for_prompts(1), "num_inference_steps": 1, "output_type": "latent"}
    manager = EditManager(pipeline)
    try:
        manager.load_edit(random_edit(pipeline.transformer, "a", 1), "a")
        for edits in ([], ["a"]):
            manager.set_edits(edits, branch="conditional")
            pipeline(prompts, generator=torch.Generator().manual_seed(1), **settings)
    finally:
        manager.close()
        handle.remove()
    plain, edited = (each.chunk(2) for each in outputs)
    assert distance(edited[conditional], plain[conditional]) > 1e-3
    assert distance(edited[1 - conditional], plain[1 - conditional]) < 1e-5


class _Turned(diffusers.StableDiffusionPipeline):
    """Somebody's own pipeline, whose batch has the conditional rows first."""

    def __call__(self, prompt, negative_prompt, generator):
        device = torch.device("cpu")
        prompt_embeds, negative_prompt_embeds = self.encode_prompt(prompt, device, 1, True, negative_prompt)
        latents = torch.randn(len(prompt), 4, 8, 8, generator=generator)
        text = torch.cat([prompt_embeds, negative_prompt_embeds])
        return self.unet(torch.cat([latents] * 2), 500, text)[0]


def test_the_negative_prompt_tells_the_branch() -> None:
    pipeline = _Turned(**own("sd")[0].components, requires_safety_checker=False)
    manager = EditManager(pipeline)
    manager.load_edit(random_edit(pipeline.unet, "a", 1), "a")
    with torch.no_grad():
        plain = pipeline(["a cat", "a dog"], ["", ""], torch.Generator().manual_seed(1))
        manager.set_edits("a", branch="conditional")
        edited = pipeline(["a cat", "a dog"], ["", ""], torch.Generator().manual_seed(1))
    assert distance(edited[:2], plain[:2]) > 1e-3
    assert distance(edited[2:], plain[2:]) < 1e-5


@pytest.mark.parametrize("name", ["sd", "pixart"])
def test_methods_around_a_run_have_locals_of_their_own(name) -> None:
    _, pipeline, more = conditional(name)
    expected = draw(pipeline, ONE, more=more)
    plain_kind = type(pipeline)

    class Around(plain_kind):
        def __call__(self, prompt, **arguments):
            latents = torch.zeros(2 * len(prompt), 4)  # noqa: F841
            return plain_kind.__call__(self, prompt, **arguments)

        def render(self, prompt, **arguments):
            latents, do_classifier_free_guidance = torch.zeros(2 * len(prompt), 4), False  # noqa: F841
            return plain_kind.__call__(self, prompt, **arguments)

    pipeline.__class__ = Around
    assert torch.equal(draw(pipeline, ONE, more=more), expected)
    assert torch.equal(draw(pipeline.render, ONE, more=more), expected)
