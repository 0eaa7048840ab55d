"""What layers are, of denoisers of diffusers built without memory, and of tiny ones that run."""

import inspect
import re

import diffusers
import pytest
import torch
from torch import nn

import cad_fast
from cad_fast.components.inspection import count_presets, inspect_layers
from cad_fast.diffusion.denoisers import denoiser_of
from cad_fast.diffusion.layers import match_modules
from cad_fast.diffusion.structure import base_modules, layer_roles
from tests.pipelines import flux, stable_diffusion, stable_diffusion_3

FEW = ("num_layers", "num_single_layers", "n_layers", "depth", "num_refiner_layers", "num_text_blocks")
FEW = (*FEW, "num_visual_blocks", "num_attention_blocks")

HIDREAM = {
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "caption_channels": [16, 16],
    "text_emb_dim": 16,
    "num_routed_experts": 2,
    "num_activated_experts": 1,
    "axes_dims_rope": (4, 2, 2),
    "max_resolution": (8, 8),
}
LUMINA = {
    "hidden_size": 32,
    "num_layers": 2,
    "num_attention_heads": 4,
    "num_kv_heads": 2,
    "multiple_of": 16,
    "cross_attention_dim": 32,
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "ffn_dim_multiplier": 1.0,
}


def built(name: str, **config) -> nn.Module:
    """A denoiser of few layers without memory for its weights."""
    kind = getattr(diffusers, name)
    parameters = inspect.signature(kind.__init__).parameters
    few = {key: min(2, parameters[key].default) for key in FEW if isinstance(parameters.get(key), inspect.Parameter)}
    with torch.device("meta"):
        return kind(**(config or few))


def paths(names) -> set[str]:
    """Paths without the numbers of blocks."""
    return {re.sub(r"\.\d+(?=\.)", "", f".{name}")[1:] for name in names}


# (class, config, layers that read neurons, layers that read heads, keys and values of text), paths without numbers.
FAMILIES = [
    (
        "FluxTransformer2DModel",
        {},
        {"transformer_blocks.ff.net.2", "transformer_blocks.ff_context.net.2", "single_transformer_blocks.proj_out"},
        {
            "transformer_blocks.attn.to_out.0",
            "transformer_blocks.attn.to_add_out",
            "single_transformer_blocks.proj_out",
        },
        {"transformer_blocks.attn.add_k_proj", "transformer_blocks.attn.add_v_proj"},
    ),
    (
        "Flux2Transformer2DModel",
        {},
        {"transformer_blocks.ff.linear_out", "transformer_blocks.ff_context.linear_out"}
        | {"single_transformer_blocks.attn.to_out"},
        {"transformer_blocks.attn.to_out.0", "transformer_blocks.attn.to_add_out"}
        | {"single_transformer_blocks.attn.to_out"},
        {"transformer_blocks.attn.add_k_proj", "transformer_blocks.attn.add_v_proj"},
    ),
    (
        "QwenImageTransformer2DModel",
        {},
        {"transformer_blocks.img_mlp.net.2", "transformer_blocks.txt_mlp.net.2"},
        {"transformer_blocks.attn.to_out.0", "transformer_blocks.attn.to_add_out"},
        {"transformer_blocks.attn.add_k_proj", "transformer_blocks.attn.add_v_proj"},
    ),
    (
        "WanTransformer3DModel",
        {},
        {"blocks.ffn.net.2"},
        {"blocks.attn1.to_out.0", "blocks.attn2.to_out.0"},
        {"blocks.attn2.to_k", "blocks.attn2.to_v"},
    ),
    (
        "HiDreamImageTransformer2DModel",
        HIDREAM,
        {f"{kind}_stream_blocks.block.ff_i.{part}.w2" for kind in ("double", "single") for part in ("shared_experts",)}
        | {f"{kind}_stream_blocks.block.ff_i.experts.w2" for kind in ("double", "single")}
        | {"double_stream_blocks.block.ff_t.w2"},
        {"double_stream_blocks.block.attn1.to_out", "double_stream_blocks.block.attn1.to_out_t"}
        | {"single_stream_blocks.block.attn1.to_out"},
        {"double_stream_blocks.block.attn1.to_k_t", "double_stream_blocks.block.attn1.to_v_t"},
    ),
    (
        "SanaTransformer2DModel",
        {},
        set(),
        {"transformer_blocks.attn1.to_out.0", "transformer_blocks.attn2.to_out.0"},
        {"transformer_blocks.attn2.to_k", "transformer_blocks.attn2.to_v"},
    ),
    (
        "PRXTransformer2DModel",
        {},
        {"blocks.down_proj"},
        {"blocks.attention.to_out.0"},
        {"blocks.attention.txt_kv_proj"},
    ),
    (
        "AuraFlowTransformer2DModel",
        {"num_mmdit_layers": 1, "num_single_dit_layers": 1},
        {"joint_transformer_blocks.ff.out_projection", "joint_transformer_blocks.ff_context.out_projection"}
        | {"single_transformer_blocks.ff.out_projection"},
        {"joint_transformer_blocks.attn.to_out.0", "joint_transformer_blocks.attn.to_add_out"}
        | {"single_transformer_blocks.attn.to_out.0"},
        {"joint_transformer_blocks.attn.add_k_proj", "joint_transformer_blocks.attn.add_v_proj"},
    ),
    (
        "Lumina2Transformer2DModel",
        {},
        {f"{block}.feed_forward.linear_2" for block in ("layers", "noise_refiner", "context_refiner")},
        {f"{block}.attn.to_out.0" for block in ("layers", "noise_refiner", "context_refiner")},
        None,
    ),
    (
        "LuminaNextDiT2DModel",
        LUMINA,
        {"layers.feed_forward.linear_2"},
        None,
        {"layers.attn2.to_k", "layers.attn2.to_v"},
    ),
    ("CogVideoXTransformer3DModel", {}, {"transformer_blocks.ff.net.2"}, {"transformer_blocks.attn1.to_out.0"}, None),
    (
        "Krea2Transformer2DModel",
        {},
        {"transformer_blocks.ff.down"} | {f"text_fusion.{part}_blocks.ff.down" for part in ("layerwise", "refiner")},
        {"transformer_blocks.attn.to_out.0"}
        | {f"text_fusion.{part}_blocks.attn.to_out.0" for part in ("layerwise", "refiner")},
        None,
    ),
    (
        "Kandinsky5Transformer3DModel",
        {},
        {"text_transformer_blocks.feed_forward.out_layer", "visual_transformer_blocks.feed_forward.out_layer"},
        {"text_transformer_blocks.self_attention.out_layer"}
        | {f"visual_transformer_blocks.{kind}_attention.out_layer" for kind in ("self", "cross")},
        {f"visual_transformer_blocks.cross_attention.to_{name}" for name in ("key", "value")},
    ),
    (
        "AceStepTransformer1DModel",
        {},
        {"layers.mlp.down_proj"},
        {"layers.self_attn.to_out.0", "layers.cross_attn.to_out.0"},
        {"layers.cross_attn.to_k", "layers.cross_attn.to_v"},
    ),
    (
        "StableAudio3DiTModel",
        {},
        {"transformer_blocks.ff.proj_out"},
        {"transformer_blocks.self_attn.to_out", "transformer_blocks.cross_attn.to_out"},
        {"transformer_blocks.cross_attn.to_kv"},
    ),
    (
        "ChromaTransformer2DModel",
        {},
        None,
        None,
        {"transformer_blocks.attn.add_k_proj", "transformer_blocks.attn.add_v_proj"},
    ),
    (
        "ZImageTransformer2DModel",
        {},
        {f"{b}.feed_forward.w2" for b in ("layers", "noise_refiner", "context_refiner")},
        None,
        None,
    ),
]


@pytest.mark.parametrize(("name", "config", "neurons", "heads", "text"), FAMILIES, ids=[entry[0] for entry in FAMILIES])
def test_neurons_heads_and_text_of_a_family(name, config, neurons, heads, text) -> None:
    denoiser = built(name, **config)
    layers = base_modules(denoiser)
    roles = layer_roles(denoiser)
    linear = {path: role for path, role in roles.items() if isinstance(layers[path], nn.Linear)}
    if neurons is not None:
        assert paths(path for path, role in linear.items() if role.hidden) == neurons
    if heads is not None:
        assert paths(path for path, role in linear.items() if role.heads) == heads
    if text is None:
        with pytest.raises(ValueError, match=rf"{name} is in the preset .*; there are: feed-forward \("):
            match_modules(denoiser, "cross-attention-kv")
    else:
        assert paths(match_modules(denoiser, "cross-attention-kv")) == text
    assert not any("time" in path for path in match_modules(denoiser, "feed-forward")), "embeddings are no feed-forward"


def test_convolutions_are_a_feed_forward_where_they_take_its_place() -> None:
    denoiser = built("SanaTransformer2DModel")
    names = paths(match_modules(denoiser, "feed-forward"))
    assert names == {f"transformer_blocks.ff.conv_{part}" for part in ("inverted", "depth", "point")}
    with pytest.raises(ValueError, match=r"feed-forwards are convolutions.*use kind='filter'"):
        cad_fast.ComponentSpace.of(denoiser, "neuron")
    kandinsky = built("Kandinsky3UNet")
    assert all("feed_forward" in name for name in match_modules(kandinsky, "feed-forward"))


def test_attention_of_the_picture_alone_is_no_cross_attention() -> None:
    """SD3.5's second attention, and the second one of motion modules, carry the name of a cross-attention."""
    sd35 = built("SD3Transformer2DModel", sample_size=8, patch_size=2, in_channels=4, num_layers=2, out_channels=4,
                 num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16,
                 attention_head_dim=8, dual_attention_layers=(0,))  # fmt: skip
    assert paths(match_modules(sd35, "cross-attention-kv")) == {f"transformer_blocks.attn.add_{x}_proj" for x in "kv"}
    motion = built("UNetMotionModel", sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
                   down_block_types=("DownBlockMotion", "CrossAttnDownBlockMotion"), cross_attention_dim=16,
                   up_block_types=("CrossAttnUpBlockMotion", "UpBlockMotion"), num_attention_heads=2,
                   motion_num_attention_heads=2, motion_max_seq_length=8, use_motion_mid_block=False)  # fmt: skip
    assert not any("motion" in name for name in match_modules(motion, "cross-attention-kv"))


def test_a_layer_read_by_attention_and_feed_forward_has_columns_of_each() -> None:
    """The columns of a single-stream block's output that are neurons are those that its hidden units go into."""
    transformer = flux().transformer
    block = transformer.single_transformer_blocks[0]
    role = layer_roles(transformer)["single_transformer_blocks.0.proj_out"]
    assert role.heads == (0, role.hidden[0]) and role.hidden[1] == block.proj_out.in_features
    seen = {}
    handles = [
        block.proj_mlp.register_forward_hook(lambda module, inputs, output: seen.update(hidden=output)),
        block.proj_out.register_forward_pre_hook(lambda module, inputs: seen.update(joined=inputs[0])),
    ]
    flux()("a cat", num_inference_steps=1, height=16, width=16, max_sequence_length=16, output_type="latent")
    for handle in handles:
        handle.remove()
    first, last = role.hidden
    torch.testing.assert_close(seen["joined"][..., first:last], block.act_mlp(seen["hidden"]))


def test_a_head_of_a_joint_attention_is_one_component() -> None:
    transformer = stable_diffusion_3().transformer
    space = cad_fast.ComponentSpace.of(transformer, "head")
    attentions = [module for module in transformer.modules() if type(module).__name__ == "Attention"]
    assert space.n == sum(attention.heads for attention in attentions)
    pairs = {module: first for module, first in space.shared().items() if module != first}
    assert pairs and all(first == module.replace("to_add_out", "to_out.0") for module, first in pairs.items())
    component = torch.tensor([space.n - 1, 0]).sort().values
    edited = space.split_indices(component)
    assert set(edited) >= set(next(iter(pairs.items()))), "the head of the first block has its share in two modules"
    part = space.restrict([name for name in pairs])
    assert part.n == sum(entry.count for entry in part) and next(entry.offset for entry in part) == 0


@pytest.mark.parametrize("method", ["gradient", "ablated_gradient", "sensitivity"])
@pytest.mark.parametrize(("make", "kind"), [(stable_diffusion_3, "head"), (flux, "head"), (flux, "neuron")])
def test_scores_of_shares_and_spans_are_those_of_gates(make, kind, method) -> None:
    """By both ways there are: through gates, and by the gradients of all weights of a component."""
    pipeline = make()
    options = {"height": 16, "width": 16, "max_sequence_length": 16} if make is flux else {}
    recording = cad_fast.record(pipeline, "a cat", num_inference_steps=2, progress=False, **options)
    recording = cad_fast.with_base(recording, pipeline, "a dog", progress=False)
    space = cad_fast.ComponentSpace.of(pipeline, kind)
    objective = cad_fast.ConceptErasure(base="base")
    if method == "gradient":
        by_gate, by_weight = (
            cad_fast.Attributor(pipeline, objective, space, method="gradient", via=via).run(recording, progress=False)
            for via in ("gate", "weight")
        )
        torch.testing.assert_close(by_gate.values, by_weight.values, rtol=1e-3, atol=1e-6)
        return
    extra = {"partitions": 1, "fraction": 0.25} if method == "ablated_gradient" else {"probes": 1}
    scores = cad_fast.Attributor(pipeline, objective, space, method=method, **extra).run(recording, progress=False)
    assert len(scores.values) == space.n and scores.values.any()


def test_edits_of_shared_heads_and_of_spans_are_stored(tmp_path) -> None:
    for pipeline, kind in ((stable_diffusion_3(), "head"), (flux(), "head"), (flux(), "neuron")):
        space = cad_fast.ComponentSpace.of(pipeline, kind)
        ablation = cad_fast.Ablation.random(space.n, 0.3, 1)
        edit = cad_fast.Edit.from_indices("some", space, ablation.indices)
        assert edit.n_components == len(ablation)
        edit.save_pretrained(tmp_path / kind)
        loaded = cad_fast.Edit.from_pretrained(tmp_path / kind, pipeline)
        assert loaded == edit and loaded.n_components == len(ablation)
        assert loaded.space.shared() == edit.space.shared()
        assert {e.module: e.span for e in loaded.space} == {e.module: e.span for e in edit.space}
        weights = edit.to_weights()
        assert weights.n_weights == edit.n_weights
        composed = cad_fast.compose([edit, loaded])
        assert composed.digest() == edit.digest() and composed.n_components == len(ablation)


def test_a_share_that_says_something_else_is_refused(tmp_path) -> None:
    transformer = stable_diffusion_3().transformer
    space = cad_fast.ComponentSpace.of(transformer, "head")
    pair = next((module, first) for module, first in space.shared().items() if module != first)
    with pytest.raises(ValueError, match="share of the heads"):
        cad_fast.Edit("bad", space, {pair[0]: torch.tensor([0]), pair[1]: torch.tensor([1])})


def test_the_table_counts_what_the_spaces_have() -> None:
    for pipeline in (stable_diffusion(), stable_diffusion_3(), flux()):
        table = inspect_layers(pipeline)
        counts = count_presets(table)
        assert [layer.module for layer in table] == list(base_modules(denoiser_of(pipeline)))
        assert counts["feed-forward"]["neurons"] == cad_fast.ComponentSpace.of(pipeline, "neuron").n
        assert counts["attention"]["heads"] == cad_fast.ComponentSpace.of(pipeline, "head").n
        assert counts["all"]["weights"] == cad_fast.ComponentSpace.of(pipeline, "weight", "all").n
