"""Modules under gates: the operators give what torch's passes do, and run where they pay."""

import pytest
import torch
from torch import Tensor, nn

import cad_fast
from cad_fast.components.ablation import Ablation
from cad_fast.components.module_components import ModuleComponents
from cad_fast.components.space import ComponentSpace
from cad_fast.ops import backends, use_backend
from cad_fast.ops.registry import OPS
from cad_fast.row_engine import forms
from cad_fast.row_engine.forms import Gated, run_form
from tests.row_truth import copy_of, distance, some_call, variant_outputs

VARIANTS = 3
KINDS = {
    "neurons": (lambda: nn.Linear(96, 40), 1, (6, 300, 96)),
    "heads": (lambda: nn.Linear(96, 40, bias=False), 12, (6, 10, 30, 96)),
    "filters": (lambda: nn.Conv2d(8, 24, 3, padding=1, groups=2), 1, (6, 8, 40, 40)),
    "filters, reflected": (lambda: nn.Conv2d(8, 24, 3, padding=1, padding_mode="reflect"), 1, (6, 8, 40, 40)),
    "strided filters": (lambda: nn.Conv2d(8, 24, 3, stride=2, bias=False), 1, (6, 8, 80, 80)),
}
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture
def native_kernels() -> None:
    if backends.native.why_not() is not None:
        pytest.skip(backends.native.why_not())


def op_of(module: nn.Module) -> str:
    return "gated_linear" if isinstance(module, nn.Linear) else "gated_conv2d"


def form_of(module: nn.Module, block: int, gradients: bool, whole: bool = False) -> Gated:
    """Gates of which some are 0; the others are 1 if `whole`."""
    linear = isinstance(module, nn.Linear)
    count = module.in_features // block if linear else module.out_channels
    gates = torch.ones(VARIANTS, count) if whole else torch.rand(VARIANTS, count) + 0.5
    gates[torch.rand(VARIANTS, count) < 0.3] = 0
    keep = None if gradients else (gates != 0).repeat_interleave(block, 1)
    gates = gates.to(module.weight.dtype).requires_grad_(gradients)
    entry = ModuleComponents("layer", "head" if linear else "filter", tuple(module.weight.shape), block, 0)
    return Gated(gates, entry, gradients or not whole, keep)


def both(monkeypatch, call) -> tuple[list[Tensor], list[Tensor]]:
    """Results by the operators where they are taken, and by torch."""
    mine = call()
    with monkeypatch.context() as patch:
        patch.setattr(forms, "fuses", lambda *arguments: False)
        return mine, call()


def assert_near(mine: list[Tensor], plain: list[Tensor], dtype: torch.dtype) -> None:
    for ours, theirs in zip(mine, plain, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        error = (ours.double() - theirs.double()).norm() / theirs.double().norm()
        assert error < (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("whole", [False, True], ids=["factors", "removed"])
@pytest.mark.parametrize("kind", KINDS)
def test_without_gradients(native_kernels, monkeypatch, kind: str, whole: bool, dtype: torch.dtype) -> None:
    make, block, shape = KINDS[kind]
    module, x = make().to(dtype), torch.randn(shape).to(dtype)
    form = form_of(module, block, False, whole)
    op = OPS[op_of(module)]
    before = op.runs["native"]
    with torch.no_grad():
        mine, plain = both(monkeypatch, lambda: [run_form(form, module, x, VARIANTS)])
    assert op.runs["native"] == before + 1
    assert_near(mine, plain, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["auto", "native", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_gates(native_kernels, monkeypatch, kind: str, backend: str, dtype: torch.dtype) -> None:
    make, block, shape = KINDS[kind]
    shape = (6, 2000, 96) if kind == "neurons" else shape  # enough to be worth it
    module, x = make().to(dtype), torch.randn(shape).to(dtype).requires_grad_()
    form = form_of(module, block, True)
    op = OPS[op_of(module)]
    before = op.runs.total()

    def call() -> list[Tensor]:
        with use_backend(backend):
            y = run_form(form, module, x, VARIANTS)
            return [y.detach(), *torch.autograd.grad(y.float().pow(2).sum(), [x, form.gates])]

    mine, plain = both(monkeypatch, call)
    taken = backend != "auto" or (kind == "neurons" and dtype == torch.float32)
    assert (op.runs.total() > before) == taken
    assert_near(mine, plain, dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_removed_does_not_leak(native_kernels, monkeypatch, kind: str) -> None:
    make, block, shape = KINDS[kind]
    module, x = make(), torch.randn(shape)
    form = form_of(module, block, False)
    with torch.no_grad():
        if isinstance(module, nn.Linear):
            dropped = form.keep.logical_not().repeat_interleave(2, 0)
            x = x.masked_fill(dropped.view(6, *[1] * (len(shape) - 2), -1), float("inf"))
        else:
            form.gates[:, ::5], form.keep[:, ::5] = 0, False
            module.weight[::5] = float("inf")
        mine, plain = both(monkeypatch, lambda: [run_form(form, module, x, VARIANTS)])
    assert mine[0].isfinite().all()
    assert_near(mine, plain, torch.float32)


def test_small_layers_and_other_dtypes_are_left_to_torch(native_kernels) -> None:
    before = {name: OPS[name].runs.total() for name in ("gated_linear", "gated_conv2d")}
    with torch.no_grad():
        for kind, (make, block, shape) in KINDS.items():
            small, few = make(), torch.randn(3, *[max(5, s // 40) for s in shape[1:-1]], shape[-1])
            few = few if kind in ("neurons", "heads") else torch.randn(3, 8, 9, 9)
            run_form(form_of(small, block, False), small, few, VARIANTS)
            wide = make().double()
            run_form(form_of(wide, block, False), wide, torch.randn(shape).double(), VARIANTS)
            half = make()
            form = form_of(half, block, False)
            with torch.autocast("cpu", torch.bfloat16):
                run_form(form, half, torch.randn(shape), VARIANTS)
    assert before == {name: OPS[name].runs.total() for name in before}


SPACES = [
    ("neuron", "feed-forward", "gated_linear"),
    ("head", "attention", "gated_linear"),
    ("filter", "convolution", "gated_conv2d"),
]


@pytest.mark.parametrize(("kind", "target", "op"), SPACES)
def test_a_denoiser_against_copies_with_other_weights(native_kernels, kind: str, target: str, op: str) -> None:
    unet = copy_of("sd")
    space = ComponentSpace.of(unet, kind, target)
    ablations = [Ablation.random(space.n, 0.3, seed=1), None, Ablation.random(space.n, 0.3, seed=2, factor=0.5)]
    call, inputs = some_call("sd", 2 * VARIANTS)
    expected = variant_outputs(unet, space, ablations, "sd", inputs)
    before = OPS[op].runs["native"]
    with torch.no_grad(), use_backend("native"), cad_fast.rows(unet, ablations, space):
        assert distance(call.run(unet, **inputs), expected) < 1e-5
    assert OPS[op].runs["native"] > before


@pytest.mark.parametrize(("kind", "target", "op"), SPACES)
def test_gate_gradients_of_a_denoiser(native_kernels, kind: str, target: str, op: str) -> None:
    unet = copy_of("sd")
    space = ComponentSpace.of(unet, kind, target)
    ablations = [Ablation.random(space.n, 0.3, seed=1), None, Ablation.random(space.n, 0.3, seed=2, factor=0.5)]
    call, inputs = some_call("sd", VARIANTS)
    results = []
    for backend in ("auto", "native"):
        before = OPS[op].runs["native"]
        with use_backend(backend), cad_fast.rows(unet, ablations, space, gradients="gates") as engine:
            y = call.run(unet, **inputs)
            results.append(torch.autograd.grad(y.pow(2).sum(), list(engine.gates.values())))
    assert OPS[op].runs["native"] > before
    for mine, plain in zip(*results, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-3, atol=1e-5 * float(plain.abs().max()))
