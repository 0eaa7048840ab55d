"""Edits as PEFT adapters: PEFT's own loader gives the outputs and the exact zeros of ours."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import cad_fast
from cad_fast.attribution import Scores
from cad_fast.components.space import ComponentSpace
from cad_fast.diffusion.denoisers import denoiser_of
from cad_fast.edits import Edit, RowEdits, Selection
from cad_fast.edits.files.peft import export_peft, load_peft
from tests.pipelines import stable_diffusion

peft = pytest.importorskip("peft")
FORMATS = [name for name in ("shira", "supertuning") if name == "shira" or hasattr(peft, "SupertuningConfig")]
DTYPES = (torch.float32, torch.bfloat16)


def zoo_unet():
    return cad_fast.load_pipeline("zoo:emoji").unet


def tiny_unet():
    return stable_diffusion().unet


def edit_of(unet, kind="weight", target="cross-attention-kv", ratio=0.03, factor=0.0):
    space = ComponentSpace.of(unet, kind, target)
    scores = Scores(torch.randn(space.n, generator=torch.Generator().manual_seed(1)), space, {"concept": "car"})
    return Edit.from_scores(scores, Selection(ratio), factor=factor, name="no-car")


def output(unet, dtype):
    generator = torch.Generator().manual_seed(2)
    config = unet.config
    sample = torch.randn(2, config.in_channels, 16, 16, generator=generator).to(dtype)
    text = torch.randn(2, 5, config.cross_attention_dim, generator=generator).to(dtype)
    with torch.no_grad():
        return unet(sample, 500, text).sample


def base_of(unet, name):
    return denoiser_of(unet).get_submodule(name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("build", [zoo_unet, tiny_unet])
@pytest.mark.parametrize("kind", FORMATS)
def test_peft_gives_the_same_outputs(kind, build, dtype, tmp_path):
    unet = copy.deepcopy(build()).to(dtype)
    edit = edit_of(unet)
    plain = output(unet, dtype)
    with edit.applied(unet):
        expected = output(unet, dtype)
        zeroed = {name: base_of(unet, name).weight.detach().clone() for name in edit.components}
    assert not torch.equal(plain, expected)
    export_peft(edit, unet, tmp_path, format=kind)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}

    wrapped = peft.PeftModel.from_pretrained(copy.deepcopy(unet), tmp_path)
    assert torch.equal(output(wrapped, dtype), expected)
    with wrapped.disable_adapter():
        assert torch.equal(output(wrapped, dtype), plain)
    merged = wrapped.merge_and_unload()
    for name, weight in zeroed.items():
        found = base_of(merged, name).weight
        assert torch.equal(found, weight)
        assert (found.flatten()[edit.weight_indices()[name]] == 0).all()

    beside = copy.deepcopy(unet)
    load_peft(beside, tmp_path, "no-car")
    assert torch.equal(output(beside, dtype), expected)
    beside.disable_adapters()
    assert torch.equal(output(beside, dtype), plain)
    beside.enable_adapters()
    assert torch.equal(output(beside, dtype), expected)
    beside.delete_adapters("no-car")
    assert torch.equal(output(beside, dtype), plain)


@pytest.mark.parametrize("kind", ["neuron", "head"])
def test_other_kinds_and_factors(kind, tmp_path):
    unet = tiny_unet()
    edit = edit_of(unet, kind, None, ratio=0.3, factor=0.25)
    export_peft(edit, unet, tmp_path, strength=0.5)
    wrapped = peft.PeftModel.from_pretrained(copy.deepcopy(unet), tmp_path)
    with edit.applied(unet, 0.5):
        expected = output(unet, torch.float32)
    assert (output(wrapped, torch.float32) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_padding_is_zero_and_every_place_differs(tmp_path):
    unet = tiny_unet()
    edit = edit_of(unet, ratio=0.2)
    export_peft(edit, unet, tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    rank = peft.PeftConfig.from_pretrained(tmp_path).r
    for name, indices in edit.weight_indices().items():
        weight = base_of(unet, name).weight.detach()
        values = stored[f"base_model.model.{name}.shira_weight"]
        places = stored[f"base_model.model.{name}.shira_indices"].long()
        assert len(values) == rank * sum(weight.shape)
        flat = places[0] * weight.shape[1] + places[1]
        assert len(flat.unique()) == len(flat)
        edited = torch.isin(flat, indices)
        assert edited.sum() == len(indices) and torch.equal(values[edited], -weight.flatten()[flat[edited]])
        assert (values[~edited] == 0).all()


def test_what_peft_cannot_hold_is_named(tmp_path):
    unet = tiny_unet()
    with pytest.raises(ValueError, match=r"linear layers only, these are none: .*conv"):
        export_peft(edit_of(unet, target="all"), unet, tmp_path / "conv")
    with pytest.raises(ValueError, match=r"needs SHiRA's r = \d+, for which the weights of .* have no room"):
        space = ComponentSpace.of(unet, "weight", "feed-forward")
        whole = Edit.from_indices("whole", space, torch.arange(space.entries[0].count))
        export_peft(whole, unet, tmp_path / "full")
    other = copy.deepcopy(unet)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    with pytest.raises(ValueError, match="made for another model"):
        export_peft(edit_of(unet), other, tmp_path / "other")
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="holds no adapter_config"):
        load_peft(unet, tmp_path)


@pytest.mark.parametrize("kind", FORMATS)
def test_an_edit_is_refused_beside_its_own_adapter(kind, tmp_path):
    """Both would take each weight away twice."""
    unet = copy.deepcopy(tiny_unet())
    edit = edit_of(unet)
    export_peft(edit, unet, tmp_path, format=kind)
    load_peft(unet, tmp_path)
    with pytest.raises(ValueError, match=f"has a {kind} adapter, which adds to single weights"):
        edit.fuse(unet)
    runner = RowEdits(unet)
    runner.add(edit)
    with runner.rows([((edit.name,),)] * 2), pytest.raises(ValueError, match=r"adapter \((Shira|Supertuning)Layer\)"):
        output(unet, torch.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, n: t[f"{n}.shira_indices"].fill_(10**6), "places outside its weight of shape"),
        (lambda t, n: t[f"{n}.shira_indices"].fill_(-1), "places outside its weight of shape"),
        (lambda t, n: t.update({f"{n}.shira_indices": t[f"{n}.shira_indices"][:, 1:].clone()}), "belong together"),
        (lambda t, n: t.pop(f"{n}.shira_weight"), "belong together"),
        (lambda t, n: t.update({"base_model.model.conv_in.shira_weight": torch.zeros(3)}), "names other modules"),
        (lambda t, n: t.update({f"{n}.shira_bias": torch.zeros(3)}), "fits no linear"),
        (lambda t, n: t.update({k: v[..., 1:].clone() for k, v in t.items()}), "which its config is not for"),
    ],
)
def test_hostile_adapters_change_nothing(tmp_path, change, message):
    unet = copy.deepcopy(tiny_unet())
    edit = edit_of(unet)
    export_peft(edit, unet, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    change(tensors, f"base_model.model.{next(iter(edit.components))}")
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=message):
        load_peft(unet, tmp_path)
    assert not any(isinstance(module, peft.tuners.shira.Linear) for module in unet.modules())


def test_scores_of_many_modules_have_one_r(tmp_path):
    """The module with the most edited weights per row and column decides."""
    unet = tiny_unet()
    space = ComponentSpace.of(unet, "weight", "cross-attention-kv")
    first = space.entries[0]
    chosen = torch.cat([torch.arange(sum(first.weight_shape) + 1), torch.tensor([first.count])])
    edit = Edit.from_indices("e", space, chosen)
    export_peft(edit, unet, tmp_path)
    assert peft.PeftConfig.from_pretrained(tmp_path).r == 2


def test_a_strength_that_is_no_number_is_refused(tmp_path):
    with pytest.raises(ValueError, match="strength is nan, expected a finite number"):
        export_peft(edit_of(tiny_unet()), tiny_unet(), tmp_path, strength=float("nan"))
    assert not list(tmp_path.iterdir())


def edited_weights(unet, edit, strength=1.0):
    with edit.applied(unet, strength):
        return {name: base_of(unet, name).weight.detach().clone() for name in edit.components}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("factor", "strength", "expected"),
    [(0.0, 1.0, 0.0), (0.25, 1.0, 0.25), (0.3, 1.0, 0.3), (-1.7, 1.0, -1.7), (0.0, 0.4, 0.6), (0.1, 2.5, -1.25)],
)
@pytest.mark.parametrize("kind", FORMATS)
def test_there_and_back(kind, dtype, factor, strength, expected, tmp_path):
    unet = copy.deepcopy(zoo_unet()).to(dtype)
    edit = edit_of(unet, factor=factor)
    export_peft(edit, unet, tmp_path, strength=strength, format=kind)
    back = Edit.from_peft(unet, tmp_path, "back")
    assert back.name == "back" and back.space.kind == "weight" and back.factor == pytest.approx(expected, abs=1e-12)
    before, after = edited_weights(unet, edit, strength), edited_weights(unet, back)
    for name, indices in back.weight_indices().items():
        assert torch.isin(indices, edit.weight_indices()[name]).all()
        assert torch.equal(after[name], before[name])
    assert before.keys() == after.keys()
    if dtype == torch.float32:
        assert back.components.keys() == edit.components.keys()
        again = tmp_path / "again"
        export_peft(back, unet, again, format=kind)
        first, second = (load_file(place / "adapter_model.safetensors") for place in (tmp_path, again))
        assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_factor_that_is_no_short_decimal(dtype, tmp_path):
    unet = copy.deepcopy(zoo_unet()).to(dtype)
    for number, factor in enumerate((1 / 3, 2**0.5, -0.123456789)):
        edit = edit_of(unet, factor=factor)
        export_peft(edit, unet, tmp_path / str(number))
        back = Edit.from_peft(unet, tmp_path / str(number))
        assert back.factor == 1 - (1 - factor)  # as the strength makes it
        before, after = edited_weights(unet, edit), edited_weights(unet, back)
        assert all(torch.equal(after[name], weight) for name, weight in before.items())
        path = tmp_path / str(number) / "adapter_model.safetensors"
        tensors = load_file(path)
        for noted in (None, "3.0"):  # from elsewhere, or a note that is wrong: the changes tell it but for rounding
            save_file(tensors, path, None if noted is None else {"cad_fast_factor": noted})
            again = Edit.from_peft(unet, tmp_path / str(number))
            assert again.factor == pytest.approx(factor, abs=1e-6 if dtype == torch.float32 else 1e-3)
        for noted in ("much", "inf"):
            save_file(tensors, path, {"cad_fast_factor": noted})
            with pytest.raises(ValueError, match="has a damaged header"):
                Edit.from_peft(unet, tmp_path / str(number))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", ["neuron", "head"])
def test_other_kinds_come_back_as_weights(kind, form, tmp_path):
    unet = tiny_unet()
    edit = edit_of(unet, kind, None, ratio=0.3)
    export_peft(edit, unet, tmp_path, format=form)
    back = Edit.from_peft(unet, tmp_path, edit.name)
    assert back.digest() == edit.to_weights().digest()


def test_made_in_half_and_read_in_full(tmp_path):
    """The model in float32 has the weights that the adapter knows in bfloat16."""
    unet = tiny_unet()
    half = copy.deepcopy(unet).to(torch.bfloat16)
    edit = edit_of(half)
    export_peft(edit, half, tmp_path)
    back = Edit.from_peft(unet, tmp_path)
    assert back.factor == 0 and back.components.keys() == edit.components.keys()


def trained(unet, change):
    """A SHiRA adapter as PEFT itself makes and writes it, with named ends and values by ``change(weights)``."""
    config = peft.ShiraConfig(r=1, target_modules=["attn2.to_k", "to_v"], random_seed=3)
    model = peft.get_peft_model(copy.deepcopy(unet), config)
    for module in model.modules():
        if isinstance(module, peft.tuners.shira.Linear):
            rows, columns = module.shira_indices["default"].long()
            module.shira_weight["default"].data = change(module.base_layer.weight.data[rows, columns])
    return model


@pytest.mark.parametrize("windows", [False, True])
def test_a_shira_adapter_of_pefts_own_making(windows, tmp_path):
    unet = tiny_unet()
    model = trained(unet, lambda weights: -0.5 * weights)
    model.save_pretrained(tmp_path)
    if windows:  # PEFT writes places as float32 there
        path = tmp_path / "adapter_model.safetensors"
        save_file({key: tensor.float() for key, tensor in load_file(path).items()}, path)
    back = Edit.from_peft(unet, tmp_path)
    assert back.factor == 0.5 and all(name.endswith(("attn2.to_k", "to_v")) for name in back.components)
    expected = output(model, torch.float32)
    with back.applied(unet):
        assert torch.equal(output(unet, torch.float32), expected)
    beside = copy.deepcopy(unet)
    load_peft(beside, tmp_path)
    assert torch.equal(output(beside, torch.float32), expected)


def test_what_an_edit_cannot_express(tmp_path):
    unet = copy.deepcopy(tiny_unet())
    for name, change, message in (
        ("values", torch.randn_like, r"multiplies weights by different factors, .* to .*, and an edit has one for all"),
        ("added", lambda weights: torch.full_like(weights, 1e-3), "multiplies weights by different factors"),
        ("nothing", torch.zeros_like, "changes no weight: there is nothing to edit"),
        ("nan", lambda weights: weights * float("nan"), "changes that are not finite"),
    ):
        trained(unet, change).save_pretrained(tmp_path / name)
        with pytest.raises(ValueError, match=message):
            Edit.from_peft(unet, tmp_path / name)
    lora = peft.get_peft_model(copy.deepcopy(unet), peft.LoraConfig(r=2, target_modules=["to_k"]))
    lora.save_pretrained(tmp_path / "lora")
    with pytest.raises(ValueError, match=r"holds a .*LORA adapter, expected one of single weights: SHIRA"):
        Edit.from_peft(unet, tmp_path / "lora")

    edit = edit_of(unet)
    export_peft(edit, unet, tmp_path / "edit")
    other = copy.deepcopy(unet)
    for parameter in other.parameters():
        parameter.data.mul_(1 + 0.3 * torch.rand_like(parameter))
    with pytest.raises(ValueError, match="multiplies weights by different factors"):
        Edit.from_peft(other, tmp_path / "edit")
    handle = edit.fuse(unet)
    with pytest.raises(ValueError, match="but the denoiser has an adapter or an edit fused into its weights"):
        Edit.from_peft(unet, tmp_path / "edit")
    handle.undo()
    pruned = copy.deepcopy(unet)
    edit.fuse(pruned)
    with pytest.raises(ValueError, match=r"gives values to \d+ weights of .* that are zero in the model"):
        Edit.from_peft(copy.deepcopy(pruned), tmp_path / "edit")
    tensors = load_file(tmp_path / "edit" / "adapter_model.safetensors")
    key = next(key for key in tensors if key.endswith("indices"))
    tensors[key][:, 1] = tensors[key][:, 0]
    save_file(tensors, tmp_path / "edit" / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="names a weight twice"):
        Edit.from_peft(unet, tmp_path / "edit")
    with pytest.raises(FileNotFoundError, match="holds no adapter_config"):
        Edit.from_peft(unet, tmp_path)


supertuning = pytest.mark.skipif("supertuning" not in FORMATS, reason="this peft has no Super-Tuning")


@supertuning
def test_a_supertuning_adapter_of_pefts_own_making(tmp_path):
    unet = tiny_unet()

    def save(folder, **more):
        config = peft.SupertuningConfig(sparsity=0.9, target_modules=["attn2.to_k"], inference_mode=True, **more)
        model = peft.get_peft_model(copy.deepcopy(unet), config)
        for module in model.modules():
            if isinstance(module, peft.tuners.supertuning.layer.Linear):
                places = module.supertuning_indices["default"].long()
                module.supertuning_values["default"].data = -0.75 * module.base_layer.weight.data.flatten()[places]
        model.save_pretrained(folder)
        return model

    model = save(tmp_path / "values")
    back = Edit.from_peft(unet, tmp_path / "values")
    assert back.factor == 0.25 and all(name.endswith("attn2.to_k") for name in back.components)
    expected = output(model, torch.float32)
    with back.applied(unet):  # a weight times 0.25, and a weight minus 0.75 of it, are rounded apart
        torch.testing.assert_close(output(unet, torch.float32), expected, rtol=1e-5, atol=1e-6)
    save(tmp_path / "hybrid", r=2)
    with pytest.raises(ValueError, match="has a LoRA beside its single weights"):
        Edit.from_peft(unet, tmp_path / "hybrid")
    save(tmp_path / "bare", save_precomputed_indices=False)
    with pytest.raises(ValueError, match="do not belong together"):
        Edit.from_peft(unet, tmp_path / "bare")


@supertuning
def test_whole_layers_fit_supertuning_alone(tmp_path):
    """Its size is a share of each weight, of which all of a weight is one."""
    unet = tiny_unet()
    space = ComponentSpace.of(unet, "weight", "feed-forward")
    first = space.entries[0]
    for count in (first.count, first.count - 1, 7, 1):
        chosen = torch.cat([torch.arange(count), torch.tensor([first.count])])
        edit = Edit.from_indices("e", space, chosen)
        export_peft(edit, unet, tmp_path / str(count), format="supertuning")
        back = Edit.from_peft(unet, tmp_path / str(count))
        assert back.digest() == edit.digest()
        stored = load_file(tmp_path / str(count) / "adapter_model.safetensors")
        least = max(count, first.count / space.entries[1].count)
        assert least <= len(stored[f"base_model.model.{first.module}.supertuning_values"]) < least + 1


def test_formats_go_by_their_names(tmp_path):
    with pytest.raises(ValueError, match=r"the format is 'lora', expected one of shira, supertuning"):
        export_peft(edit_of(tiny_unet()), tiny_unet(), tmp_path, format="lora")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", ["many", None, -1, 1e300])
@pytest.mark.parametrize("kind", FORMATS)
def test_hostile_configs(kind, size, tmp_path):
    unet = copy.deepcopy(tiny_unet())
    export_peft(edit_of(unet), unet, tmp_path, format=kind)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "r" if kind == "shira" else "sparsity": size}))
    with pytest.raises(ValueError, match=r"adapter_config|which its config is not for"):
        load_peft(unet, tmp_path)
