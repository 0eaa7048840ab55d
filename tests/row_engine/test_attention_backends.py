"""Edits, heads and rows beside the ways to compute attention: the layers around it are called all the same."""

import contextlib
import copy

import pytest
import torch
from diffusers.models import attention_dispatch, attention_processor

import cad_fast
from cad_fast.components.ablation import Ablation
from cad_fast.components.space import ComponentSpace
from cad_fast.edits import EditManager
from tests.edits.rows.test_row_edits import random_edit
from tests.row_truth import copy_of, distance, some_call, variant_outputs

PROCESSORS = {
    "sd": ["AttnProcessor", "AttnProcessor2_0", "SlicedAttnProcessor", "XFormersAttnProcessor"],
    "sd3": ["JointAttnProcessor2_0", "XFormersJointAttnProcessor"],
}
BACKENDS = ["native", "_native_math", "xformers"]
WAYS = [(name, kind) for name, kinds in PROCESSORS.items() for kind in kinds] + [("flux", kind) for kind in BACKENDS]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}


class StandIn:
    """What diffusers calls of xformers, by torch: xformers cannot be installed beside the torch of these tests."""

    calls = 0

    class ops:
        @staticmethod
        def memory_efficient_attention(query, key, value, attn_bias=None, op=None, scale=None, p=0.0):
            """Attention of [batch, tokens, width] or [batch, tokens, heads, width], as xformers lays it out."""
            StandIn.calls += 1
            four = query.dim() == 4  # the tokens are the second dimension either way
            q, k, v = (x.transpose(1, 2) if four else x for x in (query, key, value))
            mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_bias, p, scale=scale)
            return mixed.transpose(1, 2) if four else mixed


@contextlib.contextmanager
def attending(denoiser, kind, real=False):
    """Have the denoiser compute its attention in one way; whatever is said for all models ends with the context."""
    registry = attention_dispatch._AttentionBackendRegistry
    before, stand_in = registry._active_backend, StandIn
    with pytest.MonkeyPatch.context() as patch:
        if "xformers" in kind.lower() and not real:
            patch.setattr(attention_processor, "xformers", stand_in, raising=False)
            patch.setattr(attention_dispatch, "xops", stand_in.ops, raising=False)
            patch.setattr(attention_dispatch, "_CAN_USE_XFORMERS_ATTN", True)
        try:
            if kind in BACKENDS:
                denoiser.set_attention_backend(kind)
            else:
                more = {"slice_size": 1} if kind == "SlicedAttnProcessor" else {}
                denoiser.set_attn_processor(getattr(attention_processor, kind)(**more))
            yield
        finally:
            registry._active_backend = before


def ways(device="cpu", dtype=torch.float32, only=None):
    """A denoiser, a call of three rows and its inputs, for a family."""

    def to(value):
        if isinstance(value, dict):
            return {key: to(each) for key, each in value.items()}
        return value.to(device) if isinstance(value, torch.Tensor) else value

    call, inputs = some_call(only, 3, dtype)
    return copy_of(only, dtype).to(device), call, to(dict(call.inputs) | inputs)


def check(name, kind, device="cpu", dtype=torch.float32, real=False) -> None:
    denoiser, call, inputs = ways(device, dtype, name)
    edit, heads = random_edit(denoiser, "a", 1), random_edit(denoiser, "h", 2, kind="head", fraction=0.5, target=None)
    tolerance = TOLERANCE[dtype]
    with torch.no_grad():
        plain = call.run(denoiser, **inputs)
        for each in (edit, heads):
            with each.applied(denoiser):
                expected = call.run(denoiser, **inputs)  # as the denoiser attends by itself
            assert distance(expected, plain) > 5e-3
            twin = copy.deepcopy(denoiser)
            with attending(twin, kind, real):
                assert distance(call.run(twin, **inputs), plain) < tolerance
                with each.applied(twin):
                    assert distance(call.run(twin, **inputs), expected) < tolerance
                manager = EditManager(twin)
                manager.load_edit(each, "e")
                manager.set_edits("e")
                assert distance(call.run(twin, **inputs), expected) < tolerance
                manager.set_edits([])
                with manager.per_prompt(["e", "__base__", "e"]):
                    mixed = call.run(twin, **inputs)
                assert distance(mixed[[0, 2]], expected[[0, 2]]) < tolerance
                assert distance(mixed[1:2], plain[1:2]) < tolerance
                manager.close()


@pytest.mark.parametrize(("name", "kind"), WAYS)
def test_edits_of_weights_and_heads(name, kind) -> None:
    before = StandIn.calls
    check(name, kind)
    assert (StandIn.calls > before) == ("xformers" in kind.lower())


@pytest.mark.parametrize("kind", ["head", "weight"])
@pytest.mark.parametrize(("name", "way"), WAYS)
def test_rows_under_ablations(name, way, kind) -> None:
    denoiser, call, inputs = ways(only=name)
    space = ComponentSpace.of(denoiser, kind)
    ablations = [Ablation.random(space.n, 0.3, seed=1), None, Ablation.random(space.n, 0.3, seed=2)]
    expected = variant_outputs(denoiser, space, ablations, name, inputs)
    with torch.no_grad(), attending(denoiser, way), cad_fast.rows(denoiser, ablations, space):
        assert distance(call.run(denoiser, **inputs), expected) < 1e-5


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_gradients_of_heads(name, way) -> None:
    """As many as there are heads, and those that torch's own attention gives."""
    denoiser, call, inputs = ways(only=name)
    space = ComponentSpace.of(denoiser, "head")
    ablations = [Ablation.random(space.n, 0.3, seed=seed) for seed in (1, 2, 3)]

    def gradients():
        with cad_fast.rows(denoiser, ablations, space, gradients="gates") as rows:
            call.run(denoiser, **inputs).square().sum().backward()
            return torch.cat([gates.grad.flatten() for gates in rows.gates.values()])

    expected = gradients()
    with attending(denoiser, way):
        found = gradients()
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "kind"), [way for way in WAYS if "xformers" in way[1].lower()])
def test_xformers_itself(name, kind, dtype) -> None:
    """The package on a GPU: heads of these models are narrow, which its kernels take in steps of 8."""
    pytest.importorskip("xformers.ops")
    check(name, kind, "cuda", dtype, real=True)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "kind"), [way for way in WAYS if "xformers" not in way[1].lower()])
def test_on_a_gpu(name, kind, dtype) -> None:
    check(name, kind, "cuda", dtype)
