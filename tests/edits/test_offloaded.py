"""Denoisers whose weights are offloaded by diffusers and accelerate, here from the CPU to the CPU."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from diffusers.hooks import apply_group_offloading

import cad_fast
from tests.pipelines import stable_diffusion

CPU = torch.device("cpu")
TARGET = "cross-attention-kv"
OPTIONS = {"num_inference_steps": 2, "progress": False}


def drawn(pipeline):
    generator = torch.Generator().manual_seed(1)
    return pipeline("a cat", num_inference_steps=2, output_type="latent", generator=generator).images


@pytest.fixture
def pipeline():
    return copy.deepcopy(stable_diffusion())


@pytest.fixture
def edit(pipeline):
    space = cad_fast.ComponentSpace.of(pipeline, "weight", TARGET)
    return cad_fast.Edit.from_indices("e", space, cad_fast.Ablation.random(space.n, 0.3, 1).indices)


def grouped(pipeline, level: str) -> None:
    options = {"num_blocks_per_group": 1} if level == "block_level" else {}
    apply_group_offloading(pipeline.unet, onload_device=CPU, offload_type=level, **options)


@pytest.mark.parametrize("level", ["block_level", "leaf_level"])
def test_groups_that_are_offloaded(pipeline, edit, level) -> None:
    with edit.applied(pipeline):
        expected = drawn(pipeline)
    recorded = cad_fast.record(pipeline, "a cat", **OPTIONS)
    scores = cad_fast.Attributor(pipeline, target_modules=TARGET, method="gradient").run(recorded, progress=False)
    manager = cad_fast.EditManager(pipeline)
    manager.load_edit(edit)
    grouped(pipeline, level)
    again = cad_fast.record(pipeline, "a cat", **OPTIONS)
    assert torch.equal(again.calls[1].output, recorded.calls[1].output)
    same = cad_fast.Attributor(pipeline, target_modules=TARGET, method="gradient").run(again, progress=False)
    torch.testing.assert_close(same.values, scores.values)
    manager.set_edits("e")
    torch.testing.assert_close(drawn(pipeline), expected)
    manager.set_edits([])
    with edit.applied(pipeline):
        assert torch.equal(drawn(pipeline), expected)


def test_layers_that_are_offloaded_one_by_one_before_edits_are_loaded(pipeline, edit) -> None:
    with edit.applied(pipeline):
        expected = drawn(pipeline)
    plain = drawn(pipeline)
    grouped(pipeline, "leaf_level")
    manager = cad_fast.EditManager(pipeline)
    manager.load_edit(edit)
    manager.set_edits("e")
    torch.testing.assert_close(drawn(pipeline), expected)
    manager.close()
    assert torch.equal(drawn(pipeline), plain)


def test_layers_with_a_forward_of_their_own(pipeline, edit) -> None:
    layer = pipeline.unet.get_submodule(next(iter(edit.components)))
    layer.forward = lambda x, forward=layer.forward: 2 * forward(x)
    with pytest.raises(TypeError, match=r"has a forward of its own already: .*offloaded layer by layer"):
        cad_fast.EditManager(pipeline).load_edit(edit)


def test_weights_that_are_on_the_meta_device(pipeline, edit) -> None:
    with edit.applied(pipeline):
        expected = drawn(pipeline)
    manager = cad_fast.EditManager(pipeline)
    manager.load_edit(edit)
    cpu_offload(pipeline.unet, CPU)
    manager.set_edits("e")
    torch.testing.assert_close(drawn(pipeline), expected)
    manager.set_edits([])
    for forbidden in (
        lambda: cad_fast.record(pipeline, "a cat", **OPTIONS),
        lambda: cad_fast.EditManager(pipeline).load_edit(edit),
        lambda: edit.fuse(pipeline),
    ):
        with pytest.raises(ValueError, match=r"is offloaded .meta device.*before enabling sequential offloading"):
            forbidden()
