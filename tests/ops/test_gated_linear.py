"""gated_linear on the CPU: threads, compilation, and errors. What is right: cases/test_gated_linear.py."""

import pytest
import torch
from torch import Tensor

from cad_fast.ops import gated_linear, reference
from cad_fast.ops.registry import OPS
from tests.ops.calls import BACKENDS, with_threads
from tests.ops.cases.test_gated_linear import random_case


def test_the_reference_is_what_the_docstring_says() -> None:
    x, weight, gates, bias = (t.double() for t in random_case((3, 4, 7, 12, 4), torch.float32, False))
    for v in range(3):
        scaled = weight * gates[v].repeat_interleave(3)
        torch.testing.assert_close(
            reference.gated_linear(x, weight, gates, bias)[v], torch.nn.functional.linear(x[v], scaled, bias)
        )
        grad = x[v] @ weight.T
        torch.testing.assert_close(reference.gated_linear((x @ weight.T), weight, gates, None, True)[v], grad @ scaled)


@pytest.mark.parametrize("rows", [1, 5, 90])
def test_threads_do_not_matter(capability: str, rows: int) -> None:
    case = random_case((9, rows, 300, 450, 90), torch.float32, False)
    first, *others = with_threads((1, 2, 3), lambda: gated_linear(*case, backend="native"))
    assert all(torch.equal(other, first) for other in others)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles(backend: str) -> None:
    x, weight, gates, bias = random_case((2, 3, 40, 50, 25), torch.float32, False)
    x.requires_grad_()
    gates.requires_grad_()

    def function(x: Tensor, gates: Tensor) -> Tensor:
        return gated_linear(x * 2, weight, gates, bias, backend=backend).relu()

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, gates), function(x, gates))
    actual = torch.autograd.grad(compiled(x, gates).sum(), [x, gates])
    torch.testing.assert_close(actual, torch.autograd.grad(function(x, gates).sum(), [x, gates]))


def test_the_automatic_choice_is_native(native) -> None:
    before = OPS["gated_linear"].runs["native"]
    gated_linear(*random_case((2, 3, 40, 50, 25), torch.float32, False), backend="auto")
    assert OPS["gated_linear"].runs["native"] == before + 1


X, WEIGHT, GATES = torch.zeros(2, 3, 40), torch.zeros(5, 40), torch.zeros(2, 20)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X.tolist(), WEIGHT, GATES), TypeError, "x must be a tensor, got list"),
        ((X, WEIGHT, None), TypeError, "gates must be a tensor, got NoneType"),
        ((X, WEIGHT, GATES.bfloat16()), TypeError, "gates must have dtype torch.float32, got torch.bfloat16"),
        ((X, WEIGHT, GATES[:1]), ValueError, r"gates must be \[2, ...\], one row per variant of x, got \[1, 20\]"),
        ((X, WEIGHT, GATES[0]), ValueError, r"gates must be \[2, ...\].* got \[20\]"),
        ((X, WEIGHT, GATES[:, :3]), ValueError, r"gates must be \[variants, c\] with c a divisor of 40, got \[2, 3\]"),
        ((X, WEIGHT, GATES[:, :0]), ValueError, r"with c a divisor of 40, got \[2, 0\]"),
        ((X, WEIGHT, GATES.to("meta")), ValueError, "gates must be on cpu like x, got meta"),
        ((X[0], WEIGHT, GATES), ValueError, r"x must be \[variants, rows, 40\] for a weight \[5, 40\], got \[3, 40\]"),
        ((X[..., :5], WEIGHT, GATES, torch.zeros(5), True), ValueError, "bias must be None if transposed"),
    ],
)
def test_errors_name_the_argument(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gated_linear(*arguments)
