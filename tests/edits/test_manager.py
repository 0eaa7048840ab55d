"""The manager on real pipelines, held against the pipeline with the edits fused into its weights."""

import copy

import accelerate
import pytest
import torch

import cad_fast
from cad_fast.diffusion.denoisers import denoiser_of
from cad_fast.edits import Edit, EditManager
from cad_fast.row_engine.slots import slot_of
from tests.edits.rows.test_row_edits import random_edit
from tests.pipelines import PIPELINES
from tests.row_truth import distance

STEPS = 3
PROMPTS = ["a cat", "a dog", "a clock in noto style"]


def own(name):
    """A pipeline of which nobody else has the denoiser or the scheduler."""
    shared = PIPELINES[name][0]()
    pipeline = copy.copy(shared)
    part = "unet" if hasattr(shared, "unet") else "transformer"
    setattr(pipeline, part, copy.deepcopy(getattr(shared, part)))
    pipeline.scheduler = copy.deepcopy(shared.scheduler)
    return pipeline, PIPELINES[name][1]


def edits_of(pipeline):
    denoiser = denoiser_of(pipeline)
    return {"a": random_edit(denoiser, "a", 1), "b": random_edit(denoiser, "b", 2, factor=0.4, fraction=0.2)}


def managed(name="sd"):
    pipeline, more = own(name)
    manager = EditManager(pipeline)
    edits = edits_of(pipeline)
    for key, edit in edits.items():
        assert manager.load_edit(edit, key) == key
    return manager, pipeline, edits, more


def draw(run, prompts=PROMPTS, images=1, more=None, **arguments):
    generator = [torch.Generator().manual_seed(7 + i) for i in range(len(prompts) * images)]
    more = dict(more or {})
    if "negative_prompt" in more:
        more["negative_prompt"] = [more["negative_prompt"]] * len(prompts)
    settings = {"num_inference_steps": STEPS, "output_type": "latent", "num_images_per_prompt": images, **more}
    return run(list(prompts), generator=generator, **settings, **arguments)[0]


def fused(pipeline, edits, uses):
    """The pipeline with these (name, strength) fused into a copy of its denoiser."""
    edited = copy.copy(pipeline)
    part = "unet" if hasattr(pipeline, "unet") else "transformer"
    twin = copy.deepcopy(denoiser_of(pipeline))
    setattr(edited, part, twin)
    for name, strength in uses:
        edits[name].fuse(twin, strength)
    return edited


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("images", [1, 2])
def test_each_prompt_under_its_own(name, images) -> None:
    manager, pipeline, edits, more = managed(name)
    plain = draw(pipeline, images=images, more=more)
    names, weights = ["a", "__base__", ["b", "a"]], [0.8, 1.0, [1.0, 0.5]]
    mixed = draw(manager, images=images, more=more, edit_names=names, edit_weights=weights)
    for i, uses in enumerate([[("a", 0.8)], [], [("b", 1.0), ("a", 0.5)]]):
        rows = slice(i * images, (i + 1) * images)
        expected = draw(fused(pipeline, edits, uses), images=images, more=more)[rows]
        assert distance(mixed[rows], expected) < 1e-4
        assert not uses or distance(expected, plain[rows]) > 5e-3
    assert torch.equal(draw(pipeline, images=images, more=more), plain)
    with manager.per_prompt(names, weights, num_images_per_prompt=images):
        assert torch.equal(draw(pipeline, images=images, more=more), mixed)


@pytest.mark.parametrize("name", ["sd", "flux", "flux-true-cfg"])
def test_set_enable_disable_fuse(name) -> None:
    manager, pipeline, edits, more = managed(name)
    plain = draw(pipeline, more=more)
    assert manager.get_active_edits() == []
    manager.set_edits(["b", "a"], edit_weights=[0.5, 1.0])
    part = "unet" if name == "sd" else "transformer"
    assert manager.get_active_edits() == ["b", "a"] and manager.get_list_edits() == {part: ["a", "b"]}
    both = draw(pipeline, more=more)
    assert distance(both, draw(fused(pipeline, edits, [("a", 1.0), ("b", 0.5)]), more=more)) < 1e-4
    assert distance(both, plain) > 5e-3
    manager.set_edits(["a", "b"], edit_weights=[1.0, 0.5])
    assert torch.equal(draw(pipeline, more=more), both)  # whatever the order
    manager.disable_edits()
    assert torch.equal(draw(pipeline, more=more), plain) and manager.get_active_edits() == []
    manager.enable_edits()
    assert torch.equal(draw(pipeline, more=more), both)
    scaled = draw(fused(pipeline, edits, [("a", 0.5)]), more=more)
    before = {key: value.clone() for key, value in denoiser_of(pipeline).state_dict().items()}
    manager.fuse_edits()
    assert manager.get_active_edits() == ["a", "b"]
    assert not all(torch.equal(before[k], v) for k, v in denoiser_of(pipeline).state_dict().items())
    assert distance(draw(pipeline, more=more), both) < 1e-4
    manager.unfuse_edits()
    assert all(torch.equal(before[k], v) for k, v in denoiser_of(pipeline).state_dict().items())
    assert torch.equal(draw(pipeline, more=more), both)
    manager.set_edits("b")
    manager.fuse_edits("a", edit_scale=0.5)
    assert distance(draw(pipeline, more=more), scaled) < 1e-4
    manager.unfuse_edits()
    manager.set_edits([])
    assert torch.equal(draw(pipeline, more=more), plain)
    manager.close()
    assert all(slot_of(module) is None for module in denoiser_of(pipeline).modules())


@pytest.mark.parametrize("name", ["sd", "sd3", "flux-true-cfg", "flux"])
def test_the_conditional_branch_alone(name) -> None:
    """Held against rows given call by call: halves of one call, every other call, or every call."""
    manager, pipeline, _, more = managed(name)
    edited = manager.row_edits.checked([(("a",),)] * 3)
    calls = []

    def by_call(facts):
        calls.append(facts.rows)
        if facts.rows == 6:
            return [()] * 3 + edited
        return edited if name == "flux" or len(calls) % 2 else [()] * 3

    with manager.row_edits.rows(by_call):
        expected = draw(pipeline, more=more)
    assert calls == {"sd": [6], "sd3": [6], "flux": [3], "flux-true-cfg": [3, 3]}[name] * STEPS
    manager.set_edits("a")
    both = draw(pipeline, more=more)
    manager.set_edits("a", branch="conditional")
    assert torch.equal(draw(pipeline, more=more), expected)
    assert name == "flux" or distance(both, expected) > 1e-4
    mixed = draw(manager, more=more, edit_names=["a", None, "a"], branch=["conditional", "both", "both"])
    assert distance(mixed[:1], expected[:1]) < 1e-4 and distance(mixed[2:], both[2:]) < 1e-4


def test_windows_are_in_the_scheduler_s_timesteps() -> None:
    manager, pipeline, _, _ = managed()
    plain, seen = draw(pipeline), []
    hook = pipeline.unet.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(float(args[1])), with_kwargs=True
    )
    manager.set_edits("a")
    whole = draw(pipeline)
    hook.remove()
    assert len(seen) == STEPS
    manager.set_edits("a", windows=cad_fast.TimestepWindow(1000, 0))
    assert torch.equal(draw(pipeline), whole)
    manager.set_edits("a", windows=(seen[0] + 1, 2000))
    assert torch.equal(draw(pipeline), plain)
    acted = []
    original = manager.row_edits._plans_of
    manager.row_edits._plans_of = lambda keys: acted.append(any(keys)) or original(keys)
    manager.set_edits("a", windows=(seen[1], seen[0]))
    first_two = draw(pipeline)
    assert acted == [True, True, False]
    assert distance(first_two, whole) > 1e-4 and distance(first_two, plain) > 1e-4
    windows = [None, cad_fast.TimestepWindow(seen[0], seen[1]), (2000, 3000)]
    mixed = draw(manager, edit_names=["a", "a", "a"], windows=windows)
    for i, expected in enumerate((whole, first_two, plain)):
        assert distance(mixed[i : i + 1], expected[i : i + 1]) < 1e-4


def test_seeds_that_repeat_do_not_pass_for_guidance() -> None:
    """Two prompts with two images each from the same noise, unguided: their halves are equal, yet no copies."""
    manager, pipeline, edits, _ = managed()
    settings = {"num_inference_steps": 2, "output_type": "latent", "guidance_scale": 1.0, "num_images_per_prompt": 2}

    def run(pipe):
        generator = [torch.Generator().manual_seed(s) for s in (1, 2, 1, 2)]
        return pipe(["a cat", "a dog"], generator=generator, **settings)[0]

    expected = run(fused(pipeline, edits, [("a", 1.0)]))
    plain = run(pipeline)
    with manager.per_prompt(["a", "__base__"], num_images_per_prompt=2):
        output = run(pipeline)
    assert distance(output[:2], expected[:2]) < 1e-4 and distance(output[2:], plain[2:]) < 1e-5


def test_two_pipelines_are_apart_and_attribution_still_runs() -> None:
    manager, pipeline, _, _ = managed()
    other, _ = own("sd")
    plain = draw(other)
    manager.set_edits("a")
    assert torch.equal(draw(other), plain) and not torch.equal(draw(pipeline), plain)
    second = EditManager(other)
    second.load_edit(edits_of(other)["b"])
    second.set_edits("b")
    assert not torch.equal(draw(other), draw(pipeline))
    manager.disable_edits()
    assert torch.equal(draw(pipeline), plain)
    scores = cad_fast.attribute(
        pipeline, ["a cat"], generation=cad_fast.Generation(2), target_modules="all", progress=False
    )
    assert scores.values.isfinite().all()


def test_with_cpu_offload_hooks() -> None:
    manager, pipeline, _, _ = managed()
    manager.set_edits("a")
    expected = draw(pipeline)
    accelerate.cpu_offload_with_hook(pipeline.unet, execution_device="cpu")
    assert torch.equal(draw(pipeline), expected)
    with manager.per_prompt(["a", "__base__", "b"]):
        assert distance(draw(pipeline)[:1], expected[:1]) < 1e-4


def test_edits_of_prompts_cannot_be_deleted_while_they_are_drawn() -> None:
    manager, pipeline, _, _ = managed()
    with manager.per_prompt(["a", "__base__", ["a", "b"]]):
        expected = draw(pipeline)
        with pytest.raises(ValueError, match="edit 'b' is in use by per_prompt"):
            manager.delete_edits(["b"])
        assert torch.equal(draw(pipeline), expected)
    manager.delete_edits(["a", "b"])
    assert manager.get_list_edits() == {"unet": []}


def test_files(tmp_path) -> None:
    manager, pipeline, edits, _ = managed()
    edits["a"].save_pretrained(tmp_path / "stored")
    for lazy in (False, True):
        name = manager.load_edit(tmp_path / "stored", edit_name=f"lazy-{lazy}", lazy=lazy)
        manager.set_edits(name)
        lazily = draw(pipeline)
        manager.set_edits("a")
        assert torch.equal(draw(pipeline), lazily)
    manager.delete_edits(["lazy-True", "lazy-False"])
    assert manager.get_list_edits() == {"unet": ["a", "b"]}


def test_errors_change_nothing() -> None:
    manager, pipeline, _, _ = managed()
    manager.set_edits("b")
    expected = draw(pipeline)
    per_prompt = manager.per_prompt
    for call, message in (
        (lambda: manager.set_edits("z"), "there is no edit 'z'; loaded are: a, b"),
        (lambda: manager.set_edits(["a", "a"]), "names edit 'a' twice"),
        (lambda: manager.set_edits("a", edit_weights=float("nan")), "the strength of edit 'a' is nan"),
        (lambda: manager.set_edits(["a", "b"], edit_weights=[1.0]), "has 1 entries for 2 edits"),
        (lambda: manager.set_edits("a", branch="left"), "the branch of edit 'a' is 'left', expected one of both"),
        (lambda: manager.set_edits("a", windows=(1, 2, 3)), "the window of edit 'a'"),
        (lambda: manager.load_edit(Edit("a", *_space_and_components(pipeline))), "there is an edit 'a' already"),
        (lambda: manager.delete_edits(["a", "b"]), "edit 'b' is active"),
        (lambda: manager.delete_edits(["a", "z"]), "there is no edit 'z'"),
        (lambda: per_prompt("a").__enter__(), "edit_names is 'a', expected a list with one entry per prompt"),
        (lambda: per_prompt([]).__enter__(), "edit_names is empty"),
        (lambda: per_prompt([["a", "__base__"]]).__enter__(), "stands for no edit"),
        (lambda: per_prompt(["a"], [1.0, 2.0]).__enter__(), "edit_weights has 2 entries for 1 prompts"),
        (lambda: per_prompt(["a"], num_images_per_prompt=0).__enter__(), "num_images_per_prompt is 0"),
        (lambda: manager(PROMPTS, edit_names=["a"]), "there are 1 edit_names for 3 prompts"),
        (lambda: manager.fuse_edits("z"), "there is no edit 'z'"),
        (lambda: manager.fuse_edits(edit_scale=float("inf")), "the strength of edit 'all' is inf"),
        (lambda: EditManager(pipeline.unet).fuse_edits(), "there is no edit to fuse"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
        assert manager.get_active_edits() == ["b"] and manager.get_list_edits() == {"unet": ["a", "b"]}
    assert torch.equal(draw(pipeline), expected)
    for images, message in ((1, "2 prompts with 1 images each, .* called with 6 rows"), (3, "with 3 images each")):
        with manager.per_prompt(["a", "b"], num_images_per_prompt=images), pytest.raises(ValueError, match=message):
            draw(pipeline, prompts=PROMPTS[: 3 if images == 1 else 1])
    with manager.per_prompt(["a"]), pytest.raises(ValueError, match="1 prompts with 1 images each"):
        draw(pipeline, prompts=PROMPTS[:2], guidance_scale=1.0)  # two rows without guidance are two prompts
    manager.fuse_edits()
    for call in (lambda: manager.set_edits("a"), lambda: per_prompt(["a"]).__enter__(), manager.disable_edits):
        with pytest.raises(ValueError, match=r"while edits are fused \(b\): call unfuse_edits first"):
            call()
    manager.unfuse_edits()
    manager.set_edits("b", windows=(0, 500))
    with pytest.raises(ValueError, match="edit 'b' has a window or a branch"):
        manager.fuse_edits()
    bare = EditManager(pipeline.unet)
    bare.load_edit(edits_of(pipeline)["a"])
    with pytest.raises(ValueError, match="a bare denoiser has no conditional branch"):
        bare.set_edits("a", branch="conditional")


def _space_and_components(pipeline):
    edit = edits_of(pipeline)["a"]
    return edit.space, edit.components
