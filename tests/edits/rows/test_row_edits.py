"""Rows under edits by name, held against a copy of the denoiser per row with the row's edits fused into it."""

import copy

import accelerate
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

import cad_fast
from cad_fast.components.ablation import Ablation
from cad_fast.components.space import ComponentSpace
from cad_fast.edits import Edit, RowEdits
from cad_fast.row_engine.slots import slot_of
from tests.row_truth import copy_of, distance, some_call


def random_edit(denoiser, name, seed, kind="weight", fraction=0.05, factor=0.0, target="all"):
    space = ComponentSpace.of(denoiser, kind, target)
    indices = Ablation.random(space.n, fraction, seed).indices
    return Edit.from_indices(name, space, indices, factor)


def three_edits(unet):
    return {
        "a": random_edit(unet, "a", 1),
        "b": random_edit(unet, "b", 2, factor=0.3, fraction=0.3),
        "c": random_edit(unet, "c", 3, kind="filter"),
    }


def truth(plain, edits, call, inputs, rows, time):
    """Row by row, the whole batch through a copy of the denoiser into which the row's edits are fused."""
    outputs = []
    for number, row in enumerate(rows):
        twin = copy.deepcopy(plain)
        for name, strength, window in row:
            if window is None or window[0] <= time <= window[1]:
                edits[name].fuse(twin, strength)
        outputs.append(call.run(twin, **inputs)[number])
    return torch.stack(outputs)


ROWS = [
    (("a", 1.0, None),),
    (),
    (("b", 0.5, None), ("a", 1.0, None)),
    (("a", 1.0, None), ("b", 0.5, None)),
    (("a", 1.0, None), ("b", 0.5, None)),
    (("c", -0.7, (100, 900)), ("b", 2.0, (0, 99))),
    (("c", 1.0, None), ("a", -1.0, None), ("b", 1.0, None)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_each_row_runs_under_its_own(name, dtype) -> None:
    unet = copy_of(name, dtype)
    plain, edits = copy.deepcopy(unet), three_edits(unet)
    rows = [tuple(use for use in row if name == "sd" or use[0] != "c") for row in ROWS]
    runner = RowEdits(unet)
    for key, edit in edits.items():
        runner.add(edit, key)
    call, inputs = some_call(name, len(rows), dtype)
    with torch.no_grad():
        base = call.run(plain, **inputs)
        for time in (500.0, 50.0):
            inputs[call.timestep_key] = torch.full((len(rows),), time).to(inputs[call.timestep_key])
            with runner.rows(rows):
                output = call.run(unet, **inputs)
            expected = truth(plain, edits, call, inputs, rows, time)
            assert distance(output, expected) < (1e-5 if dtype == torch.float32 else 0.05)
            base = call.run(plain, **inputs)
            assert (expected - base).flatten(1).norm(dim=1)[[0, 2, 3, 4, 6]].min() > 0.01
            assert torch.equal(output[3], output[2]) or distance(output[3:4], expected[3:4]) < 0.05
            assert torch.equal(call.run(unet, **inputs), base)  # outside, bit for bit
            with runner.rows([()] * len(rows)):
                assert torch.equal(call.run(unet, **inputs), base)
            with runner.rows([(("a", 0.0, None),)] * len(rows)):
                assert torch.equal(call.run(unet, **inputs), base)
    runner.close()
    assert all("forward" not in module.__dict__ for module in unet.modules())


def test_order_of_names_and_neighbours_does_not_matter() -> None:
    unet = copy_of("sd")
    runner = RowEdits(unet)
    for key, edit in three_edits(unet).items():
        runner.add(edit, key)
    call, inputs = some_call("sd", 3)
    mine = (("a", 0.9, None), ("b", -0.4, None), ("c", 1.3, None))
    outputs = []
    with torch.no_grad():
        for own, first, last in (
            (mine, (), ()),
            (mine[::-1], (("a",),), ()),
            (mine[1:] + mine[:1], mine, (("c", 2.0),)),
        ):
            with runner.rows([first, own, last]):
                outputs.append(call.run(unet, **inputs)[1])
    assert torch.equal(outputs[0], outputs[1])
    # A neighbour with the same edits shares the group, and torch's convolution of two images is not that of each.
    assert distance(outputs[0][None], outputs[2][None]) < 1e-5


def test_windows_look_at_each_row_s_timestep() -> None:
    unet = copy_of("sd")
    runner = RowEdits(unet)
    runner.add(random_edit(unet, "a", 1))
    call, inputs = some_call("sd", 4)
    inputs[call.timestep_key] = torch.tensor([900, 500, 499, 100])
    with torch.no_grad():
        plain = call.run(unet, **inputs)
        with runner.rows([(("a",),)] * 4):
            edited = call.run(unet, **inputs)
        for window in ((500, 900), (900, 500), cad_fast.TimestepWindow(900, 500)):
            with runner.rows([(("a", 1.0, window),)] * 4):
                output = call.run(unet, **inputs)
            assert distance(output[:2], edited[:2]) < 1e-5 and distance(output[2:], plain[2:]) < 1e-5
            assert distance(edited, plain) > 1e-2


def test_removed_weights_count_as_zero_even_if_infinite() -> None:
    unet = copy_of("sd")
    space = ComponentSpace.of(unet, "weight", ["conv_in"])
    zero, half = (Edit.from_indices(n, space, torch.tensor([3]), f) for n, f in (("zero", 0.0), ("half", 0.5)))
    unet.get_submodule(space.entries[0].module).weight.data.view(-1)[3] = float("inf")
    runner = RowEdits(unet)
    runner.add(zero), runner.add(half)
    call, inputs = some_call("sd", 3)
    with torch.no_grad(), runner.rows([(("zero",), ("half",)), (("half", -3.0), ("zero",)), (("half",),)]):
        output = call.run(unet, **inputs)
    assert output[:2].isfinite().all() and not output[2].isfinite().all()


def test_the_same_assignment_is_prepared_once(monkeypatch) -> None:
    unet = copy_of("sd")
    runner = RowEdits(unet)
    for key, edit in three_edits(unet).items():
        runner.add(edit, key)
    assembled, composed = [], []
    original, compose = runner._assembled, runner._composition
    monkeypatch.setattr(runner, "_assembled", lambda keys: assembled.append(keys) or original(keys))
    monkeypatch.setattr("cad_fast.edits.rows.row_edits.composed", lambda p: composed.append(p) or _composed(p))
    from cad_fast.edits.rows.prepared import composed as _composed

    call, inputs = some_call("sd", 3)
    rows = [(("a",), ("b",)), (("c",),), ()]
    with torch.no_grad():
        for _ in range(3):
            with runner.rows(rows):
                call.run(unet, **inputs)
        assert len(assembled) == 1 and len(composed) == 2
        with runner.rows([*rows[:2], (("b", 0.5),)]):  # one row changes: only what is new is composed
            call.run(unet, **inputs)
    assert len(assembled) == 2 and len(composed) == 3 and compose is not None


def test_beside_lora_and_hooks_that_load_weights() -> None:
    unet = copy_of("sd")
    edits = three_edits(unet)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False), unet)
    plain = copy.deepcopy(unet.requires_grad_(False))
    runner = RowEdits(unet)
    for key, edit in edits.items():
        runner.add(edit, key)
    rows = [(("a",),), (), (("b", 0.5),)]
    call, inputs = some_call("sd", 3)
    expected = truth(plain, edits, call, inputs, runner.checked(rows), 0)
    with torch.no_grad(), runner.rows(rows):
        assert distance(call.run(unet, **inputs), expected) < 1e-5
        accelerate.cpu_offload(unet, execution_device="cpu")  # every leaf's forward is replaced, its weights on meta
        assert next(unet.parameters()).device.type == "meta"
        assert distance(call.run(unet, **inputs), expected) < 1e-5
    plain_again = call.run(unet, **inputs)
    runner.close()
    accelerate.hooks.remove_hook_from_module(unet, recurse=True)
    assert torch.equal(plain_again, call.run(plain, **inputs))
    late = RowEdits(unet)  # the hooks came first this time
    accelerate.hooks.add_hook_to_module(unet, accelerate.hooks.ModelHook())
    for module in unet.modules():
        accelerate.hooks.add_hook_to_module(module, accelerate.hooks.ModelHook())
    for key, edit in edits.items():
        late.add(edit, key)
    with torch.no_grad(), late.rows(rows):
        assert distance(call.run(unet, **inputs), expected) < 1e-5
    late.close()
    with torch.no_grad():
        assert torch.equal(plain_again, call.run(unet, **inputs))


@pytest.mark.parametrize("in_place", [False, True])
def test_compiled_once_whatever_the_edits(in_place) -> None:
    unet = copy_of("sd")
    plain = copy.deepcopy(unet)
    edits = {"a": random_edit(unet, "a", 1), "b": random_edit(unet, "b", 2, factor=0.5)}
    torch._dynamo.reset()
    compiled = unet
    if in_place:
        unet.compile(backend="aot_eager", fullgraph=True)
    else:
        compiled = torch.compile(unet, backend="aot_eager", fullgraph=True)
    runner = RowEdits(compiled)
    for key, edit in edits.items():
        runner.add(edit, key)
    call, inputs = some_call("sd", 3)
    torch._dynamo.utils.counters.clear()
    with torch.no_grad():
        for rows in ([(("a",),), (), (("b",), ("a", 0.5))], [()] * 3, [(("b", 2.0),)] * 3, [(), (("a", -1.0),), ()]):
            with runner.rows(rows):
                output = call.run(compiled, **inputs)
            assert distance(output, truth(plain, edits, call, inputs, runner.checked(rows), 0)) < 1e-5
        assert torch.equal(call.run(compiled, **inputs), call.run(plain, **inputs))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    runner.close()


def test_two_denoisers_and_copies_are_apart() -> None:
    first, second = copy_of("sd"), copy_of("sd")
    runner = RowEdits(first)
    runner.add(random_edit(first, "a", 1))
    call, inputs = some_call("sd", 2)
    with torch.no_grad():
        plain = call.run(second, **inputs)
        with runner.rows([(("a",),)] * 2):
            twin = copy.deepcopy(first)
            assert torch.equal(call.run(twin, **inputs), plain)
            assert torch.equal(call.run(second, **inputs), plain)
            assert distance(call.run(first, **inputs), plain) > 1e-2
    assert slot_of(first.conv_in) is not slot_of(twin.conv_in)


def test_rows_of_ablations_go_first() -> None:
    """Slots at rest are no hindrance to ``cad_fast.rows``; at work they are refused."""
    unet = copy_of("sd")
    runner = RowEdits(unet)
    runner.add(random_edit(unet, "a", 1))
    space = ComponentSpace.of(unet, "weight", "all")
    ablation = Ablation.random(space.n, 0.05, seed=1)
    call, inputs = some_call("sd", 2)
    with torch.no_grad():
        with cad_fast.rows(unet, [ablation, None], space):
            first = call.run(unet, **inputs)
            with runner.rows([(("a",),)] * 2), pytest.raises(RuntimeError, match="runs under ablations"):
                call.run(unet, **inputs)
        with runner.rows([(("a",),), ()]):
            assert distance(call.run(unet, **inputs), first) < 1e-5


def test_lazily_added_edits_are_read_when_used_and_again_when_pushed_out(tmp_path, monkeypatch) -> None:
    unet = copy_of("sd")
    edits = {name: random_edit(unet, name, seed) for seed, name in enumerate("abc")}
    runner = RowEdits(unet, cache_bytes=edits["a"].n_weights * 8 + 100)
    for name, edit in edits.items():
        edit.save_pretrained(tmp_path / name)
        runner.add(tmp_path / name, lazy=True)
    from cad_fast.edits.files import sources

    read, load = [], sources.read_folder
    monkeypatch.setattr(sources, "read_folder", lambda place: read.append(place.name) or load(place))
    call, inputs = some_call("sd", 1)
    plain = copy.deepcopy(unet)
    with torch.no_grad():
        for name in "aabca":
            with runner.rows([((name,),)]):
                output = call.run(unet, **inputs)
            assert distance(output, truth(plain, edits, call, inputs, runner.checked([((name,),)]), 0)) < 1e-5
    assert read == ["a", "b", "c", "a"]
    edits["b"].save_pretrained(tmp_path / "c")
    runner._prepared.clear(), runner._compositions.clear(), runner._plans.clear()
    with runner.rows([(("c",),)]), pytest.raises(ValueError, match="holds another edit than when it was loaded as 'c'"):
        call.run(unet, **inputs)


def test_errors_change_nothing(tmp_path) -> None:
    unet = copy_of("sd")
    runner = RowEdits(unet)
    edit = random_edit(unet, "a", 1)
    runner.add(edit)
    other = copy_of("sd")
    for parameter in other.parameters():
        parameter.data.mul_(1.1)
    with pytest.raises(ValueError, match="edit 'b' was made for another model"):
        runner.add(random_edit(other, "b", 1))
    with pytest.raises(ValueError, match="there is an edit 'a' already"):
        runner.add(edit)
    with pytest.raises(ValueError, match="edit name 'x/y'"):
        runner.add(edit, "x/y")
    with pytest.raises(FileNotFoundError, match=r"neither a folder|edit_config.json"):
        runner.add(tmp_path, lazy=True)
    for rows, message in (
        ([(("z",),)], "there is no edit 'z'; loaded are: a"),
        ([(("a", float("nan")),)], "the strength of edit 'a' is nan, expected a finite number"),
        ([(("a", True),)], "the strength of edit 'a' is True"),
        ([(), (("a",), ("a", 0.5))], "row 1 names edit 'a' twice"),
        ([(("a", 1.0, 3),)], "the window of edit 'a' is 3, expected two timesteps"),
        ([(("a", 1.0, (float("nan"), 3)),)], "the window of edit 'a'"),
    ):
        with pytest.raises(ValueError, match=message), runner.rows(rows):
            pass
    call, inputs = some_call("sd", 2)
    with torch.no_grad():
        plain = call.run(unet, **inputs)
        with (
            runner.rows([(("a",),)]),
            pytest.raises(ValueError, match="called with 2 rows, but edits were given for 1"),
        ):
            call.run(unet, **inputs)
        with runner.rows([(("a",),)] * 2), pytest.raises(ValueError, match="edit 'a' is in use"):
            runner.remove("a")
        assert torch.equal(call.run(unet, **inputs), plain)
    runner.remove("a")
    assert runner.names == () and all(slot_of(module) is None for module in unet.modules())
    double = RowEdits(unet.double())
    double.add(edit)
    with double.rows([(("a",),)] * 2), pytest.raises(TypeError, match=r"is torch\.float64, expected"):
        call.run(
            unet, **{k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in inputs.items()}
        )


def test_an_error_inside_the_denoiser_leaves_no_edit_behind() -> None:
    unet = copy_of("sd")
    runner = RowEdits(unet)
    runner.add(random_edit(unet, "a", 1))
    call, inputs = some_call("sd", 2)
    with torch.no_grad():
        plain = call.run(unet, **inputs)
        handle = unet.conv_out.register_forward_pre_hook(lambda *_: 1 / 0)
        with runner.rows([(("a",),)] * 2), pytest.raises(ZeroDivisionError):
            call.run(unet, **inputs)
        handle.remove()
        assert torch.equal(call.run(unet, **inputs), plain)


def test_what_ends_a_call_without_torchs_hooks_leaves_no_edit_behind() -> None:
    """Hooks are skipped by torch for what is no Exception: Ctrl-C, or the end of a generation."""
    unet = copy_of("sd", torch.float32)
    call, _ = some_call("sd", 2)
    edits = RowEdits(unet)
    edits.add(random_edit(unet, "a", 1))
    rows = [(("a", 1.0, None),)] * call.rows
    plain = call.run(unet)

    def interrupt(*_):
        raise KeyboardInterrupt

    def interrupted():
        hook = unet.conv_out.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            call.run(unet)
        hook.remove()

    edits.set_rows(rows)
    edited = call.run(unet)
    interrupted()
    assert torch.equal(call.run(unet), edited), "the next call is no second one beside it"
    interrupted()
    edits.set_rows([()] * call.rows)
    assert torch.equal(call.run(unet), plain)
    edits.set_rows(rows)
    interrupted()
    edits.set_rows(None)
    assert torch.equal(call.run(unet), plain)
