"""The same model is recognised in any precision; other weights and other shapes are told apart."""

from __future__ import annotations

import copy
import json

import peft
import pytest
import torch
from torch import nn

from cad_fast.components.fingerprint import Fingerprint, own_tensors
from tests.pipelines import stable_diffusion, stable_diffusion_3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("model", [lambda: stable_diffusion().unet, lambda: stable_diffusion_3().transformer])
def test_the_same_in_other_precisions(model, dtype: torch.dtype) -> None:
    fingerprint = Fingerprint.of(model())
    assert fingerprint.difference(Fingerprint.of(copy.deepcopy(model()).to(dtype))) is None
    fingerprint.require_same(Fingerprint.of(model()), "the scores")


def test_other_weights() -> None:
    unet = copy.deepcopy(stable_diffusion().unet)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.mul_(1.01)
    reason = Fingerprint.of(stable_diffusion().unet).difference(Fingerprint.of(unet))
    assert "weights differ by 1%" in reason


def test_weights_that_are_not_numbers_are_not_the_same() -> None:
    unet = copy.deepcopy(stable_diffusion().unet)
    nn.init.constant_(unet.conv_in.weight, float("nan"))
    assert Fingerprint.of(stable_diffusion().unet).difference(Fingerprint.of(unet)) is not None


def test_other_shapes() -> None:
    first, second = Fingerprint.of(nn.Linear(3, 4)), Fingerprint.of(nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"the scores was made for another model: .*names or shapes"):
        first.require_same(second, "the scores")
    assert "(Linear and Conv2d)" in first.difference(Fingerprint.of(nn.Conv2d(3, 4, 1)))


def test_adapters_beside_the_weights_do_not_count() -> None:
    class Wrapped(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.base_layer, self.lora_A = layer, nn.ModuleDict({"default": nn.Linear(4, 2)})

    plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    wrapped = nn.Sequential(plain[0], Wrapped(plain[1]))
    assert Fingerprint.of(plain).difference(Fingerprint.of(wrapped)) is None


ADAPTERS = {
    "lora": peft.LoraConfig(r=2, target_modules=["to_k", "proj_in"], modules_to_save=["conv_out"]),
    "dora": peft.LoraConfig(r=2, target_modules=["to_k", "to_v"], use_dora=True),
    "loha": peft.LoHaConfig(r=2, target_modules=["to_k", "to_v"]),
    "lokr": peft.LoKrConfig(r=2, target_modules=["to_k", "to_v"]),
    "oft": peft.OFTConfig(r=2, oft_block_size=0, target_modules=["to_k", "to_v"]),
    "ia3": peft.IA3Config(target_modules=["to_k", "to_v"], feedforward_modules=[]),
    "hra": peft.HRAConfig(r=2, target_modules=["to_k", "to_v"]),
}


def load_ip_adapter(unet) -> None:
    """An IP-Adapter of random weights, as diffusers loads one."""
    weights, number = {}, 1
    for name in unet.attn_processors:
        if "attn1" not in name:
            width = unet.get_submodule(name.rpartition(".")[0]).to_k.out_features
            weights |= {f"{number}.to_{part}_ip.weight": torch.randn(width, 16) for part in "kv"}
            number += 2
    projection = {"proj.weight": torch.randn(64, 8), "proj.bias": torch.zeros(64)}
    projection |= {"norm.weight": torch.ones(16), "norm.bias": torch.zeros(16)}
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": weights}])


@pytest.mark.parametrize("kind", [*ADAPTERS, "ip-adapter", "fused projections", "ip-adapter and lora"])
def test_what_is_put_beside_the_weights_does_not_count(kind) -> None:
    unet = copy.deepcopy(stable_diffusion().unet)
    before = len(list(unet.parameters()))
    if kind in ADAPTERS:
        unet.add_adapter(ADAPTERS[kind], "x")
    if "ip-adapter" in kind:
        load_ip_adapter(unet)
    if "and lora" in kind:
        unet.add_adapter(ADAPTERS["lora"], "x")
    if kind == "fused projections":
        unet.fuse_qkv_projections()
    assert len(list(unet.parameters())) > before
    assert Fingerprint.of(unet) == Fingerprint.of(stable_diffusion().unet)
    other = copy.deepcopy(unet)
    with torch.no_grad():
        for name, tensor in own_tensors(other):
            assert "_ip" not in name and ".lora_" not in name
            tensor.mul_(1.05)
    assert "weights differ" in Fingerprint.of(unet).difference(Fingerprint.of(other))


def test_own_tensors_are_those_of_the_state_dict() -> None:
    for model in (stable_diffusion().unet, stable_diffusion_3().transformer, nn.BatchNorm2d(3)):
        state = model.state_dict(keep_vars=True)
        own = dict(own_tensors(model))
        assert own.keys() == state.keys() and all(own[name] is state[name] for name in state)


def test_models_without_matrices() -> None:
    assert Fingerprint.of(nn.LayerNorm(4)).samples == ()
    assert Fingerprint.of(nn.LayerNorm(4)).difference(Fingerprint.of(nn.LayerNorm(4))) is None


def test_round_trip_and_damage() -> None:
    fingerprint = Fingerprint.of(nn.Linear(3, 4))
    value = json.loads(json.dumps(fingerprint.to_dict()))
    assert Fingerprint.from_dict(value) == fingerprint
    for damage in ({"samples": ["x"]}, {"samples": None}):
        with pytest.raises(ValueError, match="damaged model fingerprint"):
            Fingerprint.from_dict({**value, **damage})
    value.pop("architecture")
    with pytest.raises(ValueError, match="architecture"):
        Fingerprint.from_dict(value)


def small(scale: float) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(5)
    layers = torch.nn.Sequential(*(torch.nn.Linear(16, 16) for _ in range(8)))
    for parameter in layers.parameters():
        parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    return layers


@pytest.mark.parametrize("scale", [1e-7, 1e-5, 1e-3, 1.0, 1e3])
def test_weights_of_any_size_are_recognised_in_half_precision(scale) -> None:
    """Small ones are subnormal in float16, where rounding is no longer relative."""
    models = {dtype: small(scale).to(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)}
    found = {dtype: Fingerprint.of(model) for dtype, model in models.items()}
    for one in found.values():
        for other in found.values():
            assert one.difference(other) is None
    if scale >= 1e-5:
        assert "their weights differ by" in found[torch.float32].difference(Fingerprint.of(small(1.05 * scale)))


def test_a_model_that_is_mostly_zero() -> None:
    pruned = small(0.02)
    for module in pruned:
        module.weight.data[torch.rand(module.weight.shape) < 0.95] = 0
    half = copy.deepcopy(pruned).half()
    assert Fingerprint.of(pruned).difference(Fingerprint.of(half)) is None
    assert Fingerprint.of(pruned).difference(Fingerprint.of(small(0.02))) is not None


def test_weights_too_large_for_float16_are_told() -> None:
    model = small(1e6)
    reason = Fingerprint.of(model).difference(Fingerprint.of(copy.deepcopy(model).half()))
    assert "not finite" in reason
