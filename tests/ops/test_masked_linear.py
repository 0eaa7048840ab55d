"""masked_linear on the CPU: tiles, threads, compilation, and errors. What is right: cases/test_masked_linear.py."""

import pytest
import torch
from torch import Tensor

from cad_fast.ops import masked_linear
from cad_fast.ops.registry import OPS
from tests.ops import exact
from tests.ops.calls import BACKENDS, with_threads
from tests.ops.cases.test_masked_linear import random_case, transposing
from tests.rounding import assert_right

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("rows", range(1, 31))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_tile_height(capability: str, rows: int, dtype: torch.dtype) -> None:
    x, weight, words, bias = random_case(2, rows, 150, 70, dtype, False)
    y = masked_linear(x, weight, words, bias, backend="native")
    assert_right(y, exact.masked_linear(x, weight, words, bias))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 5, 90])
@transposing
def test_threads_do_not_matter(capability: str, rows: int, dtype: torch.dtype, transposed: bool) -> None:
    x, weight, words, _ = random_case(9, rows, 300, 450, dtype, transposed)

    def call(x: Tensor) -> Tensor:
        return masked_linear(x, weight, words, transposed=transposed, backend="native")

    whole, *others = with_threads((1, 2, 3), lambda: call(x))
    assert all(torch.equal(other, whole) for other in others)
    if rows > 5:  # with a few, a variant's rows are summed in another order
        assert torch.equal(call(x[:, :40]), whole[:, :40])


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles(backend: str) -> None:
    x, weight, words, bias = random_case(2, 3, 40, 50, torch.float32, False)
    x.requires_grad_()

    def function(x: Tensor) -> Tensor:
        return masked_linear(x * 2, weight, words, bias, backend=backend).relu()

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), function(x))
    (actual,) = torch.autograd.grad(compiled(x).sum(), x)
    (expected,) = torch.autograd.grad(function(x).sum(), x)
    torch.testing.assert_close(actual, expected)


def test_large_products_use_the_native_kernels(native) -> None:
    before = OPS["masked_linear"].runs["native"]
    masked_linear(*random_case(2, 3, 40, 50, torch.float32, False)[:3], backend="auto")
    assert OPS["masked_linear"].runs["native"] == before + 1


X, WEIGHT, WORDS = torch.zeros(2, 3, 40), torch.zeros(5, 40), torch.zeros(2, 5, 2, dtype=torch.int32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X.tolist(), WEIGHT, WORDS), TypeError, "x must be a tensor, got list"),
        (
            (X.double(), WEIGHT, WORDS),
            TypeError,
            "x must have dtype torch.float32 or torch.bfloat16 or torch.float16, got torch.float64",
        ),
        ((X, WEIGHT.bfloat16(), WORDS), TypeError, "weight must have dtype torch.float32, got torch.bfloat16"),
        ((X, WEIGHT, WORDS.long()), TypeError, "words must have dtype torch.int32, got torch.int64"),
        ((X[0], WEIGHT, WORDS), ValueError, r"x must be \[variants, rows, 40\] for a weight \[5, 40\], got \[3, 40\]"),
        ((X[..., :9], WEIGHT, WORDS), ValueError, r"x must be \[variants, rows, 40\] .* got \[2, 3, 9\]"),
        ((X, WEIGHT[0], WORDS), ValueError, r"weight must be \[n, k\], got \[40\]"),
        ((X, WEIGHT, WORDS[..., :1]), ValueError, r"words must be \[2, 5, 2\], got \[2, 5, 1\]"),
        ((X, WEIGHT, WORDS[:1]), ValueError, r"words must be \[2, 5, 2\], got \[1, 5, 2\]"),
        ((X, WEIGHT, WORDS, torch.zeros(4)), ValueError, r"bias must be \[5\], got \[4\]"),
        ((X, WEIGHT, WORDS, torch.zeros(5).bfloat16()), TypeError, "bias must have dtype torch.float32"),
        ((X, WEIGHT, WORDS, None, torch.zeros(3)), ValueError, r"factors must be \[2\], got \[3\]"),
        ((X, WEIGHT, WORDS, None, torch.zeros(2).double()), TypeError, "factors must have dtype torch.float32"),
        ((X[..., :5], WEIGHT, WORDS, torch.zeros(5), None, True), ValueError, "bias must be None if transposed"),
        ((X, WEIGHT.to("meta"), WORDS), ValueError, "weight must be on cpu like x, got meta"),
    ],
)
def test_errors_name_the_argument(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        masked_linear(*arguments)
