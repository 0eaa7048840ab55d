"""Models that nobody holds any more are freed, whatever was fused into them."""

import copy
import gc
import weakref

import torch
from torch import nn

import cad_fast
from tests.pipelines import stable_diffusion


def edited():
    """A pipeline with an edit fused into its denoiser, and what undoes it."""
    pipeline = copy.deepcopy(stable_diffusion())
    space = cad_fast.ComponentSpace.of(pipeline, "weight", "cross-attention-kv")
    edit = cad_fast.Edit.from_indices("e", space, torch.tensor([0, 7]))
    return pipeline, edit.fuse(pipeline)


def test_a_model_with_a_fused_edit_is_freed() -> None:
    pipeline, handle = edited()
    denoiser = weakref.ref(pipeline.unet)
    assert handle.active
    del pipeline
    gc.collect()
    assert denoiser() is None
    assert not handle.active and not handle.modules
    handle.undo()  # of a model that is gone there is nothing to undo


def test_a_model_with_edits_fused_by_a_manager_is_freed() -> None:
    pipeline = copy.deepcopy(stable_diffusion())
    space = cad_fast.ComponentSpace.of(pipeline, "weight", "cross-attention-kv")
    manager = cad_fast.EditManager(pipeline)
    manager.load_edit(cad_fast.Edit.from_indices("e", space, torch.tensor([0, 7])))
    manager.set_edits("e")
    manager.fuse_edits()
    denoiser = weakref.ref(pipeline.unet)
    del pipeline, manager
    gc.collect()
    assert denoiser() is None


def test_a_layer_that_was_replaced_under_an_edit_is_said_to_have_changed() -> None:
    pipeline, handle = edited()
    name = next(iter(handle.modules))
    parent, _, last = name.rpartition(".")
    layer = handle.modules[name]
    other = nn.Linear(layer.in_features, layer.out_features, bias=False)
    del layer
    setattr(pipeline.unet.get_submodule(parent), last, other)
    gc.collect()
    try:
        handle.undo()
    except RuntimeError as error:
        assert name in str(error) and "have changed since" in str(error)
    else:
        raise AssertionError("the layer that was edited is gone, and undo said nothing")
