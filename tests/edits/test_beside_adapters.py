"""Edits loaded and fused before and after adapters, or refused with the reason."""

import copy

import pytest
import torch

from cad_fast.edits import EditManager
from tests.components.test_fingerprint import ADAPTERS, load_ip_adapter
from tests.edits.rows.test_row_edits import random_edit
from tests.row_truth import copy_of, some_call


def put(unet, kind) -> None:
    if kind == "ip-adapter":
        load_ip_adapter(unet)
    else:
        unet.add_adapter(ADAPTERS[kind], "x")


@pytest.mark.parametrize("kind", [*ADAPTERS, "ip-adapter"])
def test_loaded_and_fused_in_either_order(kind) -> None:
    unet = copy_of("sd")
    edit = random_edit(unet, "e", 1, target="cross-attention-kv")
    early = EditManager(unet)
    early.load_edit(edit, "e")
    put(unet, kind)
    before = copy.deepcopy(unet.state_dict())
    EditManager(unet).load_edit(edit, "e")
    early.fuse_edits("e")
    name, places = next(iter(edit.weight_indices().items()))
    layer = unet.get_submodule(name)
    assert not getattr(layer, "base_layer", layer).weight.flatten()[places].any()
    early.unfuse_edits()
    with edit.applied(unet):
        pass
    assert all(torch.equal(tensor, before[key]) for key, tensor in unet.state_dict().items())


def test_fused_adapters_and_projections_are_named() -> None:
    unet = copy_of("sd")
    edit = random_edit(unet, "e", 1, target="cross-attention-kv")
    put(unet, "lora")
    unet.fuse_lora()
    for load in (lambda: EditManager(unet).load_edit(edit), lambda: edit.fuse(unet)):
        with pytest.raises(
            ValueError,
            match=r"the adapter that is fused into down_blocks.*unfuse_lora",
        ):
            load()
    unet.unfuse_lora()
    edit.fuse(unet).undo()

    unet = copy_of("sd")
    manager = EditManager(unet)
    unet.fuse_qkv_projections()
    manager.load_edit(edit, "e")
    for fuse in (lambda: edit.fuse(unet), lambda: manager.fuse_edits("e")):
        with pytest.raises(ValueError, match="is not in use, its attention runs fused projections: unfuse them first"):
            fuse()
    unet.unfuse_qkv_projections()
    edit.fuse(unet).undo()


def test_projections_fused_while_an_edit_is_in() -> None:
    unet = copy_of("sd")
    before = copy.deepcopy(unet.state_dict())
    handle = random_edit(unet, "e", 1, target="cross-attention-kv").fuse(unet)
    unet.fuse_qkv_projections()
    with pytest.raises(RuntimeError, match="projections were fused while it was in, and the copies still have it"):
        handle.undo()
    assert all(torch.equal(unet.state_dict()[key], tensor) for key, tensor in before.items())


def test_other_weights_under_row_edits() -> None:
    unet = copy_of("sd")
    manager = EditManager(unet)
    manager.load_edit(random_edit(unet, "e", 1), "e")
    manager.set_edits("e")
    call, inputs = some_call("sd", 1)
    before = copy.deepcopy(unet.state_dict())
    with torch.no_grad():
        expected = call.run(unet, **inputs)
        unet.load_state_dict({key: tensor * 1.1 for key, tensor in before.items()})
        for _ in range(2):
            with pytest.raises(ValueError, match="no longer the model that its edits are of: their weights differ by"):
                call.run(unet, **inputs)
        unet.load_state_dict(before)
        assert torch.equal(call.run(unet, **inputs), expected)
        unet.to(torch.bfloat16)  # the same model
        call, inputs = some_call("sd", 1, torch.bfloat16)
        call.run(unet, **inputs)
