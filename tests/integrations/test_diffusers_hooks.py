"""Edits as hooks of diffusers: the bits of EditManager, alone and beside other hooks."""

import copy

import diffusers
import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook, apply_first_block_cache

import cad_fast
from cad_fast.diffusion.denoisers import denoiser_of
from cad_fast.edits import EditManager
from cad_fast.integrations.diffusers_hooks import (
    HOOK_NAME,
    CadFastEditHook,
    apply_cad_fast_edit,
    edit_hooks,
    remove_cad_fast_edit,
)
from cad_fast.row_engine.slots import slot_of
from tests.edits.rows.test_row_edits import random_edit
from tests.edits.test_manager import draw, own
from tests.row_truth import copy_of, distance, some_call

CACHES = {
    "first-block": lambda: diffusers.FirstBlockCacheConfig(threshold=0.2),
    "pyramid": lambda: diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        cross_attention_block_skip_range=2,
        current_timestep_callback=lambda: 500,
    ),
    "taylor": lambda: diffusers.TaylorSeerCacheConfig(),
    "mag": lambda: diffusers.MagCacheConfig(num_inference_steps=4, mag_ratios=[1.0] * 4),
}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def managed(denoiser, *uses):
    """A manager with these (edit, strength, window) active in the denoiser."""
    manager = EditManager(denoiser)
    for edit, *_ in uses:
        manager.load_edit(edit)
    names, strengths, windows = ([use[place] for use in uses] for place in (0, 1, 2))
    manager.set_edits([edit.name for edit in names], strengths, windows=windows)
    return manager


def by_manager(name, inputs, *uses):
    denoiser = copy_of(name)
    call, _ = some_call(name, 2)
    manager = managed(denoiser, *uses)
    output = call.run(denoiser, **inputs)
    manager.close()
    return output


@pytest.mark.parametrize("strength", [1.0, 0.4])
@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
def test_outputs_are_those_of_the_manager(name, strength) -> None:
    denoiser = copy_of(name)
    before = copy.deepcopy(denoiser.state_dict())
    edit = random_edit(denoiser, "a", 1)
    call, inputs = some_call(name, 2)
    plain = call.run(denoiser, **inputs)
    with edit.applied(denoiser, strength):
        applied = call.run(denoiser, **inputs)
    apply_cad_fast_edit(denoiser, edit, strength)
    output = call.run(denoiser, **inputs)
    assert torch.equal(output, by_manager(name, inputs, (edit, strength, None)))
    # Plain layers and edited ones sum in another order.
    assert distance(output, applied) < 1e-5 < 1e-2 < distance(output, plain)
    assert all(torch.equal(tensor, before[key]) for key, tensor in denoiser.state_dict().items())
    remove_cad_fast_edit(denoiser)
    assert torch.equal(call.run(denoiser, **inputs), plain)
    assert "forward" not in denoiser.__dict__ and all(slot_of(module) is None for module in denoiser.modules())


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_pictures_are_those_of_the_manager(name) -> None:
    pipeline, more = own(name)
    edit = random_edit(denoiser_of(pipeline), "a", 1)
    plain = draw(pipeline, more=more)
    manager = managed(pipeline, (edit, 1.0, None))
    expected = draw(pipeline, more=more)
    manager.close()
    apply_cad_fast_edit(pipeline, edit)
    assert torch.equal(draw(pipeline, more=more), expected) and distance(expected, plain) > 5e-3
    remove_cad_fast_edit(pipeline)
    assert torch.equal(draw(pipeline, more=more), plain)


def test_a_server_that_knows_the_registry_alone(tmp_path) -> None:
    unet = copy_of("sd")
    edit = random_edit(unet, "a", 1)
    edit.save_pretrained(tmp_path)
    call, inputs = some_call("sd", 2)
    plain = call.run(unet, **inputs)
    registry = HookRegistry.check_if_exists_or_initialize(unet)
    registry.register_hook(CadFastEditHook(tmp_path), "any-name")
    assert torch.equal(call.run(unet, **inputs), by_manager("sd", inputs, (edit, 1.0, None)))
    assert torch.equal(unet.forward(**call.inputs | inputs | {"return_dict": False})[0], call.run(unet, **inputs))
    assert repr(registry.get_hook("any-name")).startswith("CadFastEditHook(")
    registry.remove_hook("any-name", recurse=True)
    assert torch.equal(call.run(unet, **inputs), plain)


def test_several_edits_and_windows() -> None:
    unet = copy_of("sd")
    first, second = random_edit(unet, "a", 1), random_edit(unet, "b", 2, factor=0.3, fraction=0.3)
    call, inputs = some_call("sd", 2)
    key = call.timestep_key
    apply_cad_fast_edit(unet, first, 0.8)
    apply_cad_fast_edit(unet, second, window=(400, 600), hook_name="second")
    for time, uses in ((500, [(first, 0.8, None), (second, 1.0, None)]), (700, [(first, 0.8, None)])):
        inputs[key] = torch.full((2,), time)
        assert torch.equal(call.run(unet, **inputs), by_manager("sd", inputs, *uses))
    remove_cad_fast_edit(unet)  # the inner one
    inputs[key] = torch.full((2,), 500)
    assert torch.equal(call.run(unet, **inputs), by_manager("sd", inputs, (second, 1.0, None)))
    apply_cad_fast_edit(unet, first)
    assert [hook.edit.name for hook in edit_hooks(unet)] == ["b", "a"]
    both = [(second, 1.0, None), (first, 1.0, None)]
    assert torch.equal(call.run(unet, **inputs), by_manager("sd", inputs, *both))


class Doubling(ModelHook):
    """Runs the forward, and doubles what it gives."""

    def new_forward(self, module, *args, **kwargs):
        return (2 * self.fn_ref.original_forward(*args, **{**kwargs, "return_dict": False})[0],)


def test_hooks_that_come_and_go_around_it() -> None:
    """The registry passes over the hook around one that is removed."""
    unet = copy_of("sd")
    edit = random_edit(unet, "a", 1)
    call, inputs = some_call("sd", 2)
    plain = call.run(unet, **inputs)
    registry = HookRegistry.check_if_exists_or_initialize(unet)
    registry.register_hook(Doubling(), "inner")
    apply_cad_fast_edit(unet, edit)
    registry.register_hook(Doubling(), "outer")
    edited = by_manager("sd", inputs, (edit, 1.0, None))
    assert torch.equal(call.run(unet, **inputs), 4 * edited)
    registry.remove_hook("inner")
    assert torch.equal(call.run(unet, **inputs), 2 * edited)
    remove_cad_fast_edit(unet)
    assert torch.equal(call.run(unet, **inputs), 2 * plain)
    registry.remove_hook("outer")
    assert torch.equal(call.run(unet, **inputs), plain)


def test_what_cannot_work_is_refused() -> None:
    unet = copy_of("sd")
    edit = random_edit(unet, "a", 1)
    call, inputs = some_call("sd", 2)
    plain = call.run(unet, **inputs)
    other = copy_of("sd")
    for parameter in other.parameters():
        parameter.mul_(1.1)
    with pytest.raises(ValueError, match="edit 'a' was made for another model"):
        apply_cad_fast_edit(other, edit)
    with pytest.raises(ValueError, match="strength of edit 'a' is nan"):
        apply_cad_fast_edit(unet, edit, float("nan"))
    with pytest.raises(ValueError, match="window of edit 'a'"):
        apply_cad_fast_edit(unet, edit, window=3)
    with pytest.raises(ValueError, match=r"has no edit by the hook 'cad_fast_edit'; its hooks of edits are: none"):
        remove_cad_fast_edit(unet)
    assert not edit_hooks(unet) and torch.equal(call.run(unet, **inputs), plain)

    HookRegistry.check_if_exists_or_initialize(unet).register_hook(ModelHook(), "other")
    with pytest.raises(ValueError, match=r"the hook 'other' of UNet2DConditionModel is a ModelHook already"):
        apply_cad_fast_edit(unet, edit, hook_name="other")
    with pytest.raises(ValueError, match="has no edit by the hook 'other'"):
        remove_cad_fast_edit(unet, hook_name="other")
    hook = apply_cad_fast_edit(unet, edit)
    with pytest.raises(ValueError, match=r"the hook 'cad_fast_edit' of UNet2DConditionModel is Edit\('a', .* already"):
        apply_cad_fast_edit(unet, random_edit(unet, "b", 2))
    with pytest.raises(ValueError, match="edit 'a' acts in this denoiser already, by another hook"):
        apply_cad_fast_edit(unet, edit, hook_name="second")
    with pytest.raises(ValueError, match="this hook has a denoiser already"):
        HookRegistry.check_if_exists_or_initialize(copy_of("sd")).register_hook(hook, HOOK_NAME)
    with pytest.raises(TypeError, match="a denoiser with diffusers' hooks cannot be copied"):
        copy.deepcopy(unet)
    assert torch.equal(call.run(unet, **inputs), by_manager("sd", inputs, (edit, 1.0, None)))


def test_quantised_weights_are_refused() -> None:
    unet = copy_of("sd")
    edit = random_edit(unet, "a", 1)
    unet.conv_in.weight.data = unet.conv_in.weight.data.to(torch.float8_e4m3fn)
    with pytest.raises((TypeError, ValueError), match=r"quantised weights \(torch.float8_e4m3fn\)|another model"):
        apply_cad_fast_edit(unet, edit)
    assert not edit_hooks(unet)


def test_other_edits_in_the_same_call_are_refused() -> None:
    unet = copy_of("sd")
    edit = random_edit(unet, "a", 1)
    call, inputs = some_call("sd", 2)
    apply_cad_fast_edit(unet, edit)
    expected = call.run(unet, **inputs)
    manager = managed(unet, (random_edit(unet, "b", 2), 1.0, None))
    with pytest.raises(RuntimeError, match="with the edits of one EditManager, or those of hooks"):
        call.run(unet, **inputs)
    manager.close()
    space = cad_fast.ComponentSpace.of(unet, "weight", "all")
    with cad_fast.rows(unet, [None, None], space), pytest.raises(RuntimeError, match="runs under ablations"):
        call.run(unet, **inputs)
    assert torch.equal(call.run(unet, **inputs), expected)


def test_an_error_inside_leaves_no_edit_behind() -> None:
    unet = copy_of("sd")
    call, inputs = some_call("sd", 2)
    apply_cad_fast_edit(unet, random_edit(unet, "a", 1))
    expected = call.run(unet, **inputs)
    for error in (ValueError, KeyboardInterrupt):

        def stop(*_, error=error):
            raise error

        handle = unet.conv_out.register_forward_pre_hook(stop)
        with pytest.raises(error):
            call.run(unet, **inputs)
        handle.remove()
        assert all(slot_of(m) is None or slot_of(m).plan is None for m in unet.modules())
        assert torch.equal(call.run(unet, **inputs), expected)


@pytest.mark.parametrize("first", [True, False], ids=["edit-first", "edit-last"])
@pytest.mark.parametrize("cache", CACHES)
def test_beside_caches(cache, first) -> None:
    """All rows are under the same edits, so that what a cache keeps is of the edited model."""

    def run(put, take=lambda _: None):
        transformer = copy_of("flux")
        edit = random_edit(transformer, "a", 1)
        steps = [lambda: put(transformer, edit), lambda: transformer.enable_cache(CACHES[cache]())]
        for step in steps if first else steps[::-1]:
            step()
        outputs, run_blocks = [], []
        block = transformer.single_transformer_blocks[0]
        block.norm.register_forward_hook(lambda *_: run_blocks.append(1))
        attention = transformer.transformer_blocks[0].attn.to_q
        attention.register_forward_hook(lambda *_: run_blocks.append(1))
        for step in range(4):
            with transformer.cache_context("cond"):
                outputs.append(call.run(transformer, **inputs | {call.sample_key: inputs[call.sample_key] + step / 99}))
        take(transformer)
        return torch.stack(outputs), len(run_blocks)

    call, inputs = some_call("flux", 2)
    plain, _ = run(lambda *_: None)
    expected, ran = run(lambda transformer, edit: managed(transformer, (edit, 1.0, None)))
    output, ran_too = run(apply_cad_fast_edit, remove_cad_fast_edit)
    assert torch.equal(output, expected) and ran == ran_too < 8, "the cache passed some calls over"
    assert distance(output[0], plain[0]) > 1e-2


def test_a_cache_put_there_by_hand() -> None:
    transformer = copy_of("flux")
    apply_cad_fast_edit(transformer, random_edit(transformer, "a", 1))
    call, inputs = some_call("flux", 2)
    first = call.run(transformer, **inputs)
    apply_first_block_cache(transformer, CACHES["first-block"]())
    HookRegistry.check_if_exists_or_initialize(transformer).invalidate_child_registries_cache()  # as enable_cache does
    with transformer.cache_context("cond"):
        assert torch.equal(call.run(transformer, **inputs), first)
        assert torch.equal(call.run(transformer, **inputs), first)
    remove_cad_fast_edit(transformer)
    with transformer.cache_context("uncond"):
        assert distance(call.run(transformer, **inputs), first) > 1e-2


@pytest.mark.parametrize("first", [True, False], ids=["edit-first", "edit-last"])
@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_beside_group_offloading(name, kind, first) -> None:
    _beside_group_offloading(name, kind, first, torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("first", [True, False], ids=["edit-first", "edit-last"])
@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_beside_group_offloading_to_a_gpu(name, kind, first) -> None:
    _beside_group_offloading(name, kind, first, torch.device("cuda"))


def _beside_group_offloading(name, kind, first, device) -> None:
    denoiser = copy_of(name)
    edit = random_edit(denoiser, "a", 1)
    call, inputs = some_call(name, 2)
    inputs = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in inputs.items()}
    reference = copy.deepcopy(denoiser).to(device)
    plain = call.run(reference, **inputs)
    apply_cad_fast_edit(reference, edit)
    expected = call.run(reference, **inputs)
    more = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    if first:
        apply_cad_fast_edit(denoiser, edit)
    denoiser.enable_group_offload(onload_device=device, offload_device=torch.device("cpu"), offload_type=kind, **more)
    if not first:
        apply_cad_fast_edit(denoiser, edit)
    for _ in range(2):
        assert torch.equal(call.run(denoiser, **inputs), expected)
    remove_cad_fast_edit(denoiser)
    assert torch.equal(call.run(denoiser, **inputs), plain)
    assert all(slot_of(module) is None for module in denoiser.modules())


@pytest.mark.parametrize("first", [True, False], ids=["edit-first", "edit-last"])
@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_beside_layerwise_casting(name, first) -> None:
    def cast(denoiser, dtype=torch.bfloat16):
        denoiser.enable_layerwise_casting(storage_dtype=dtype, compute_dtype=torch.float32)

    call, inputs = some_call(name, 2)
    denoiser, fused, plain = copy_of(name), copy_of(name), copy_of(name)
    edit = random_edit(denoiser, "a", 1)
    edit.fuse(fused)
    cast(fused), cast(plain)
    if first:
        apply_cad_fast_edit(denoiser, edit)
    cast(denoiser)
    if not first:
        apply_cad_fast_edit(denoiser, edit)
    for _ in range(2):
        assert distance(call.run(denoiser, **inputs), call.run(fused, **inputs)) < 1e-5
    assert distance(call.run(denoiser, **inputs), call.run(plain, **inputs)) > 1e-2
    remove_cad_fast_edit(denoiser)
    assert torch.equal(call.run(denoiser, **inputs), call.run(plain, **inputs))

    # 8 bits round too much to know the model by: the weights are edited before.
    denoiser, fused = copy_of(name), copy_of(name)
    apply_cad_fast_edit(denoiser, edit)
    cast(denoiser, torch.float8_e4m3fn)
    with pytest.raises(TypeError, match=r"float8_e4m3fn, expected one of .*put edits into the weights \(Edit.fuse\)"):
        call.run(denoiser, **inputs)
    edit.fuse(fused)
    cast(fused, torch.float8_e4m3fn)
    call.run(fused, **inputs)
    module, places = next(iter(edit.weight_indices().items()))
    assert not fused.get_submodule(module).weight.float().flatten()[places].any()
    with pytest.raises(ValueError, match="made for another model"):
        apply_cad_fast_edit(fused.__class__.from_config(fused.config), edit)


@pytest.mark.slow
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_beside_torch_compile(name, in_place) -> None:
    """The hook stands around the graph, which is compiled when an edit has been applied, and then no more."""
    denoiser = copy_of(name)
    call, inputs = some_call(name, 2)
    edits = [random_edit(denoiser, "a", 1), random_edit(denoiser, "b", 2)]
    plain = call.run(denoiser, **inputs)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    apply_cad_fast_edit(denoiser, edits[0])
    compiled = denoiser
    if in_place:
        denoiser.compile(backend="eager")
    else:
        compiled = torch.compile(denoiser, backend="eager")
    for edit in (edits[0], edits[1], edits[0]):
        remove_cad_fast_edit(compiled)
        apply_cad_fast_edit(compiled, edit)
        assert distance(call.run(compiled, **inputs), by_manager(name, inputs, (edit, 1.0, None))) < 1e-6
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        call.run(compiled, **inputs)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    assert graphs == 3  # one for each time that an edit was applied
    remove_cad_fast_edit(compiled)
    assert torch.equal(call.run(compiled, **inputs), plain)
