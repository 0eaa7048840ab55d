"""Rows under ablations by way of the Triton kernels: masks, edits, gates and scores, in every dtype."""

import pytest
import torch
from torch import nn

import cad_fast
from cad_fast.components.ablation import Ablation
from cad_fast.components.module_components import ModuleComponents
from cad_fast.components.space import ComponentSpace
from cad_fast.ops import use_backend
from cad_fast.ops.registry import OPS
from cad_fast.row_engine.forms import Gated, run_form

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def model_and_space(device: torch.device, dtype: torch.dtype) -> tuple[nn.Module, ComponentSpace]:
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Flatten(2), nn.Linear(25, 40)).to(device, dtype)
    return model, ComponentSpace.of(model, "weight", "all")


def ablations(n: int, many: bool) -> list[Ablation | None]:
    """Many ablated weights are held as masks; few, here one or two in each module, as entries."""
    if many:
        return [Ablation.random(n, 0.3, seed=1), None, Ablation.random(n, 0.4, seed=2, factor=0.5)]
    removed, halved = torch.tensor([5, 300, 301]), torch.tensor([77, 161, 1161])
    return [Ablation.from_indices(n, removed), None, Ablation.from_indices(n, halved, 0.5)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("many", "ops"),
    [(True, ("masked_linear", "masked_conv2d")), (False, ("edited_linear", "edited_conv2d"))],
    ids=["many", "few"],
)
def test_rows_and_scores(device, dtype: torch.dtype, many: bool, ops: tuple[str, str]) -> None:
    model, space = model_and_space(device, dtype)
    x = torch.randn(6, 3, 5, 5, device=device).to(dtype)
    results = []
    for backend in ("triton", "reference"):
        before = [OPS[op].runs[backend] for op in (*ops, "masked_linear_scores")]
        leaf = x.clone().requires_grad_()
        with use_backend(backend), cad_fast.rows(model, ablations(space.n, many), space, gradients="scores") as engine:
            y = model(leaf)
            y.float().square().sum().backward()
        after = [OPS[op].runs[backend] for op in (*ops, "masked_linear_scores")]
        assert all(later > earlier for earlier, later in zip(before, after, strict=True))
        results.append([y.detach(), leaf.grad, *engine.kept.values(), *engine.ablated.values()])
    for mine, expected in zip(*results, strict=True):
        assert mine.isfinite().all()
        error = (mine.double() - expected.double()).norm() / expected.double().norm()
        assert error < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("module", "op", "gates", "block"),
    [
        (lambda: nn.Linear(24, 40), "gated_linear", 24, 1),
        (lambda: nn.Linear(24, 40, bias=False), "gated_linear", 4, 6),
        (lambda: nn.Conv2d(7, 10, 3, padding="same"), "gated_conv2d", 10, 1),
    ],
    ids=["neurons", "heads", "filters"],
)
def test_gates(device, dtype: torch.dtype, module, op: str, gates: int, block: int) -> None:
    module = module().to(device, dtype)
    x = torch.randn(*(6, 5, 24) if op == "gated_linear" else (6, 7, 5, 24), device=device).to(dtype)
    values = torch.rand(3, gates, device=device) + 0.5
    values[:, ::3] = 0
    results = []
    for backend in ("triton", "reference"):
        before = OPS[op].runs[backend]
        leaves = [x.clone().requires_grad_(), values.to(dtype).requires_grad_()]
        with use_backend(backend):
            kind = "filter" if op == "gated_conv2d" else "head"
            entry = ModuleComponents("layer", kind, tuple(module.weight.shape), block, 0)
            y = run_form(Gated(leaves[1], entry, True, None), module, leaves[0], 3)
            found = torch.autograd.grad(y.float().square().sum(), leaves)
        assert OPS[op].runs[backend] > before
        results.append([y.detach(), *found])
    for mine, expected in zip(*results, strict=True):
        assert mine.isfinite().all()
        error = (mine.double() - expected.double()).norm() / expected.double().norm()
        assert error < TOLERANCE[dtype]
