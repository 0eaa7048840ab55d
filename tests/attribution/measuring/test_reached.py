"""Gradients that are cut off are errors, not scores of zero; modules that do nothing score zero."""

import copy

import pytest
import torch
from torch import nn

import cad_fast
from tests.pipelines import stable_diffusion, stable_diffusion_3

TARGET = r"mid_block.*attn2\.to_v"
METHODS = {
    "gradient": {},
    "sensitivity": {"probes": 1},
    "ablated_gradient": {"partitions": 1, "fraction": 0.25},
    "second_order": {"directions": 2, "networks": 3},
}


class NoGradient(nn.Linear):
    """A linear whose result is not recorded for gradients, as an expert's in an inference path."""

    def forward(self, x):
        with torch.no_grad():
            return nn.functional.linear(x, self.weight, self.bias).clone()


class Quantised(nn.Linear):
    """A linear with weights of 8 bits, made float32 to run."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight.float(), self.bias)


def scores_of(pipeline, recording, target, method, kind="weight"):
    options = METHODS[method]
    attributor = cad_fast.Attributor(
        pipeline, cad_fast.ConceptErasure(), kind=kind, target_modules=target, method=method, **options
    )
    return attributor.run(recording, progress=False)


@pytest.fixture(scope="module")
def recorded():
    pipeline = copy.deepcopy(stable_diffusion())
    return pipeline, cad_fast.record(pipeline, ["a cat"], num_inference_steps=2, progress=False)


@pytest.mark.parametrize("method", ["gradient", "sensitivity"])
def test_a_module_without_recorded_gradients_is_named(recorded, method) -> None:
    pipeline, recording = copy.deepcopy(recorded[0]), recorded[1]
    pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_v.__class__ = NoGradient
    with pytest.raises(ValueError, match=r"no gradient reaches mid_block.*attn2\.to_v, one of 1 modules, although"):
        scores_of(pipeline, recording, TARGET, method)
    assert not any(parameter.requires_grad for parameter in pipeline.unet.parameters())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_quantised_weights_are_refused_by_name(method, dtype) -> None:
    pipeline = copy.deepcopy(stable_diffusion())
    pipeline.unet.train()
    module = pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_v
    module.__class__ = Quantised
    module.weight = nn.Parameter(module.weight.to(dtype), requires_grad=False)
    recording = cad_fast.record(pipeline, ["a cat"], num_inference_steps=2, progress=False)
    with pytest.raises(TypeError, match=r"mid_block.*attn2\.to_v has quantised weights \(torch\."):
        scores_of(pipeline, recording, TARGET, method)
    assert pipeline.unet.training, "the model is left as it was"


class Wrapped(torch.Tensor):
    """A weight of another class than Tensor, which says that it is float32, as quantising libraries have it."""

    @staticmethod
    def __new__(cls, values):
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=torch.float32, device="cpu")

    def __init__(self, values) -> None:
        self.inside = (values * 16).round().to(torch.int8)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return cls(args[0].dequantize())
        raise TypeError(f"{function} is not known of packed weights")

    def dequantize(self):
        return self.inside.float() / 16


class Dequantising(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, self.weight.dequantize(), self.bias)


def test_weights_of_another_class_are_recorded_and_refused_by_name() -> None:
    pipeline = copy.deepcopy(stable_diffusion())
    plain = cad_fast.ComponentSpace.of(pipeline, "weight", TARGET)
    edit = cad_fast.Edit.from_indices("e", plain, torch.tensor([0, 3]))
    module = pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_v
    module.weight = nn.Parameter(Wrapped(module.weight.detach()), requires_grad=False)
    module.__class__ = Dequantising
    recording = cad_fast.record(pipeline, "a cat", num_inference_steps=2, progress=False)
    space = cad_fast.ComponentSpace.of(pipeline, "weight", TARGET)
    assert recording.fingerprint.difference(space.fingerprint) is None
    edit.space.fingerprint = space.fingerprint
    named = r"attn2\.to_v has quantised weights \(Wrapped\), which cannot be"
    with pytest.raises(TypeError, match=f"{named} attributed by gradients"):
        scores_of(pipeline, recording, TARGET, "gradient")
    with pytest.raises(TypeError, match=f"{named} edited"):
        edit.fuse(pipeline)
    manager = cad_fast.EditManager(pipeline)
    with pytest.raises(TypeError, match=f"{named} edited"):
        manager.load_edit(edit)
    with pytest.raises(TypeError, match=f"{named} ablated|does not run as a plain linear"):
        with cad_fast.rows(pipeline.unet, [None], space):
            pass


def test_a_module_that_does_nothing_scores_zero() -> None:
    """The text's query of the last joint block is read by nobody but the text, which ends there."""
    pipeline = copy.deepcopy(stable_diffusion_3())
    recording = cad_fast.record(pipeline, ["a cat"], num_inference_steps=1, progress=False)
    block = len(pipeline.transformer.transformer_blocks) - 1
    scores = scores_of(pipeline, recording, rf".*{block}\.attn\.add_[qv]_proj", "gradient")
    by_module = scores.by_module()
    assert not by_module[f"transformer_blocks.{block}.attn.add_q_proj"].any()
    assert by_module[f"transformer_blocks.{block}.attn.add_v_proj"].any()
