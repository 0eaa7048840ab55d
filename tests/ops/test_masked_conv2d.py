"""masked_conv2d on the CPU: its two paths, threads, compilation, errors. What is right: cases/test_masked_conv2d.py."""

import importlib

import pytest
import torch

from cad_fast.ops import checks, masked_conv2d
from cad_fast.ops.masked_conv2d import product_pays
from tests.ops.calls import with_threads
from tests.ops.cases.test_masked_conv2d import SIZES, inputs
from tests.ops.convolutions import GEOMETRIES

DTYPES = [torch.float32, torch.bfloat16]


def test_both_native_paths_are_tested() -> None:
    def product(size: tuple[int, ...], geometry: str) -> bool:
        how = GEOMETRIES[geometry]
        return product_pays(*inputs(size, torch.float32, how[3])[:2], checks.conv.geometry(*how, None))

    assert {product(size, "same") for size in SIZES} == {True, False}
    assert not product(SIZES[1], "grouped")


@pytest.mark.parametrize("size", [SIZES[3], SIZES[5]], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_do_not_matter(capability: str, size: tuple[int, ...], dtype: torch.dtype) -> None:
    case = inputs(size, dtype)
    first, *others = with_threads((1, 2, 3), lambda: masked_conv2d(*case, padding=1, backend="native"))
    assert all(torch.equal(other, first) for other in others)


def test_variants_in_several_parts(native, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, words, bias, factors = inputs((5, 2, 6, 4, 4, 34, 3, 3), torch.float32)
    expected = masked_conv2d(x, weight, words, bias, factors, padding=1, backend="native")
    module = importlib.import_module("cad_fast.ops.masked_conv2d")  # the package has the function by that name
    monkeypatch.setattr(module, "PATCHES_BYTES", 2 * 4 * 54 * 32)
    assert torch.equal(masked_conv2d(x, weight, words, bias, factors, padding=1, backend="native"), expected)


def test_compiles_as_one_graph(native) -> None:
    x, weight, words, bias, factors = inputs(SIZES[2], torch.float32)

    def loss(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return masked_conv2d(x, weight, words, bias, factors, padding=1).pow(2).sum()

    leaves = [x.requires_grad_(), weight.requires_grad_()]
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for actual, wanted in zip(
        torch.autograd.grad(compiled(*leaves), leaves), torch.autograd.grad(loss(*leaves), leaves), strict=True
    ):
        torch.testing.assert_close(actual, wanted)


X, WEIGHT, WORDS = torch.zeros(2, 1, 3, 4, 4), torch.zeros(5, 3, 3, 3), torch.zeros(2, 5, 1, dtype=torch.int32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0], WEIGHT, WORDS), TypeError, "x must be a tensor, got list"),
        (
            (X.double(), WEIGHT, WORDS),
            TypeError,
            "x must have dtype torch.float32 or torch.bfloat16 or torch.float16, got torch.float64",
        ),
        ((X[0], WEIGHT, WORDS), ValueError, r"x must have 5 dimensions, got shape \[1, 3, 4, 4\]"),
        ((X, WEIGHT.bfloat16(), WORDS), TypeError, "weight must have dtype torch.float32, got torch.bfloat16"),
        ((X, WEIGHT[0], WORDS), ValueError, "weight must have shape"),
        ((X, WEIGHT[:, :2], WORDS), ValueError, "x must have 2 channels for this weight and these groups, got 3"),
        ((X, WEIGHT, WORDS[:1]), ValueError, r"words must have shape .* = \[2, 5, 1\], got \[1, 5, 1\]"),
        ((X, WEIGHT, WORDS.long()), TypeError, "words must have dtype torch.int32, got torch.int64"),
        ((X, WEIGHT, WORDS, torch.zeros(4)), ValueError, r"bias must have shape \[5\], got \[4\]"),
        ((X, WEIGHT, WORDS, None, torch.zeros(3)), ValueError, r"factors must have shape \[2\], got \[3\]"),
        ((X, WEIGHT, WORDS, None, None, 0), ValueError, "stride must be at least 1, got 0"),
        (
            (X, WEIGHT, WORDS, None, None, (1, 1, 1)),
            TypeError,
            r"stride must be an int or two of them, got \(1, 1, 1\)",
        ),
        ((X, WEIGHT, WORDS, None, None, 1, "same"), TypeError, "padding must be an int or two of them, got 'same'"),
        (
            (X, WEIGHT, WORDS, None, None, 1, 0, 2),
            ValueError,
            r"images of \[4, 4\] are too small for a kernel of \[3, 3\]",
        ),
        ((X, WEIGHT, WORDS, None, None, 1, 0, 1, 2), ValueError, "weight has 5 filters, which 2 groups do not divide"),
        ((X, WEIGHT, WORDS, None, None, 1, 0, 1, 0), ValueError, "groups must be at least 1, got 0"),
        ((X, WEIGHT.to("meta"), WORDS), ValueError, "weight must be on cpu like x, got meta"),
        ((X, WEIGHT, WORDS, None, None, 1, 0, 1, 1, (4, 4)), ValueError, "x must have 5 channels"),
        (
            (torch.zeros(2, 1, 5, 3, 3), WEIGHT, WORDS, None, None, 1, 0, 1, 1, (4, 4)),
            ValueError,
            r"x must have images of \[2, 2\] for input_size \[4, 4\], got \[3, 3\]",
        ),
    ],
)
def test_errors_name_the_argument(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        masked_conv2d(*arguments)
