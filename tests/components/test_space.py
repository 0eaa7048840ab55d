"""Component spaces: which components there are, their order, their weights, and errors that name the nearest names."""

import pytest
import torch
from torch import nn

from cad_fast.choices import KINDS
from cad_fast.components.module_components import ModuleComponents
from cad_fast.components.space import ComponentSpace
from cad_fast.diffusion.denoisers import denoiser_of
from cad_fast.diffusion.layers import PRESETS, match_modules
from tests.pipelines import PIPELINES, stable_diffusion


@pytest.fixture
def unet() -> nn.Module:
    return stable_diffusion().unet


def test_weights_of_the_feed_forward_layers_are_the_default(unet):
    space = ComponentSpace.of(unet)
    expected = [name for name, m in unet.named_modules() if isinstance(m, nn.Linear) and ".ff." in name]
    assert [entry.module for entry in space] == expected
    assert space.n == sum(unet.get_submodule(name).weight.numel() for name in expected)


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        (name, preset)
        for name in PIPELINES
        for preset in PRESETS
        if not (preset == "convolution" and name.startswith("flux"))  # Flux embeds its patches by a linear
    ],
)
def test_presets_find_modules_in_every_architecture(name, preset):
    denoiser = denoiser_of(PIPELINES[name][0]())
    found = match_modules(denoiser, preset)
    assert found and all(isinstance(module, (nn.Linear, nn.Conv2d)) for module in found.values())


def test_cross_attention_kv_is_keys_and_values_only(unet):
    assert {name.split(".", 1)[1].rsplit("attn2.")[-1] for name in match_modules(unet, "cross-attention-kv")} == {
        "to_k",
        "to_v",
    }


def test_lists_match_last_parts_and_regular_expressions_whole_paths(unet):
    by_list = match_modules(unet, ["attn2.to_k", "attn2.to_v"])
    assert list(by_list) == list(match_modules(unet, "cross-attention-kv"))
    assert list(match_modules(unet, r"mid_block.*attn2\.to_k")) == [
        n for n in by_list if n.startswith("mid") and n.endswith("to_k")
    ]
    with pytest.raises(ValueError, match="to_k"):
        match_modules(unet, "to_k")


@pytest.mark.parametrize(
    ("target", "hint"), [("cross-atention-kv", "cross-attention-kv"), ("to_kk", "to_k"), (["conv9"], "conv")]
)
def test_unknown_modules_suggest_the_nearest(unet, target, hint):
    with pytest.raises(ValueError, match=hint):
        match_modules(unet, target)


def test_bad_patterns_and_kinds(unet):
    with pytest.raises(ValueError, match="not a regular expression"):
        match_modules(unet, "(")
    with pytest.raises(ValueError, match="empty"):
        match_modules(unet, [])
    with pytest.raises(ValueError, match="unknown kind 'unit'"):
        ComponentSpace.of(unet, "unit")
    with pytest.raises(ValueError, match="has components of kind 'filter'"):
        ComponentSpace.of(unet, "filter", "feed-forward")


@pytest.mark.parametrize("kind", KINDS)
def test_a_component_is_the_weights_it_says(unet, kind):
    """Against a mask built element by element."""
    space = ComponentSpace.of(unet, kind)
    entry = space.entries[-1]
    weight = space.modules(unet)[entry.module].weight.detach()
    matrix = weight.reshape(weight.shape[0], -1)
    component = entry.count // 2
    mask = torch.zeros_like(matrix, dtype=torch.bool)
    for row in range(matrix.shape[0]):
        for column in range(matrix.shape[1]):
            mask[row, column] = {
                "weight": row * matrix.shape[1] + column == component,
                "filter": row == component,
                "neuron": column == component,
                "head": column // entry.block == component,
            }[kind]
    indices = entry.weight_indices(torch.tensor([component]))
    assert torch.equal(indices, mask.flatten().nonzero().flatten())
    assert torch.allclose(entry.reduce(weight)[component], matrix[mask].sum(), rtol=1e-4, atol=1e-6)


def test_every_weight_belongs_to_exactly_one_component(unet):
    for kind in KINDS:
        for entry in ComponentSpace.of(unet, kind):
            indices = entry.weight_indices(torch.arange(entry.count))
            assert torch.equal(indices.sort().values, torch.arange(entry.rows * entry.columns)), (kind, entry.module)


def test_head_width_is_the_attentions(unet):
    for entry in ComponentSpace.of(unet, "head"):
        attention = unet.get_submodule(entry.module.removesuffix(".to_out.0"))
        assert entry.count == attention.heads


def test_numbering_splits_and_joins(unet):
    space = ComponentSpace.of(unet, "neuron")
    values = torch.arange(space.n)
    assert torch.equal(torch.cat(list(space.split(values).values())), values)
    chosen = torch.tensor([0, 3, space.n - 1])
    parts = space.split_indices(chosen)
    offsets = {entry.module: entry.offset for entry in space}
    assert torch.equal(torch.cat([part + offsets[name] for name, part in parts.items()]), chosen)
    assert space.label(space.n - 1) == f"{space.entries[-1].module} neuron {space.entries[-1].count - 1}"
    with pytest.raises(IndexError, match="outside"):
        space.label(space.n)
    with pytest.raises(ValueError, match="one per component"):
        space.split(values[:-1])


def test_round_trip_through_json_values(unet):
    space = ComponentSpace.of(unet, "head")
    again = ComponentSpace.from_dict(space.to_dict())
    assert again == space and again.fingerprint == space.fingerprint
    damaged = space.to_dict()
    damaged["entries"][0]["block"] = 0
    with pytest.raises(ValueError, match="damaged"):
        ComponentSpace.from_dict(damaged)
    with pytest.raises(ValueError, match="damaged"):
        ModuleComponents.from_dict({"module": "x"})


def test_modules_of_another_model_are_named(unet):
    space = ComponentSpace.of(unet)
    entry = space.entries[0]
    with pytest.raises(ValueError, match=f"no module '{entry.module}'"):
        space.modules(nn.Sequential(nn.Linear(2, 2)))
