"""masked_conv2d against the reference in float64, for every instruction set, on both of its native paths."""

import importlib
import math

import pytest
import torch
from torch.nn.functional import conv2d

from cad_fast.ops import checks, masked_conv2d, pack_bits, reference
from cad_fast.ops.masked_conv2d import product_pays
from tests.ops import exact
from tests.rounding import assert_right

GEOMETRIES = {
    "plain": dict(),
    "same": dict(padding=1),
    "strided": dict(stride=(2, 1), padding=(0, 2)),
    "dilated": dict(dilation=(2, 1), padding=2),
    "grouped": dict(groups=2, padding=1),
}
SIZES = [
    # V, R, C, H, W, N, kh, kw
    (1, 1, 2, 5, 5, 2, 3, 3),
    (3, 1, 6, 4, 4, 34, 3, 3),
    (2, 3, 4, 5, 7, 14, 1, 2),
    (3, 1, 66, 8, 8, 50, 3, 3),
    (2, 1, 32, 6, 6, 4, 3, 1),
    (2, 2, 6, 13, 17, 22, 3, 3),
    (2, 1, 4, 16, 16, 98, 1, 1),
]
DTYPES = [torch.float32, torch.bfloat16]


def inputs(size: tuple[int, ...], dtype: torch.dtype, groups: int = 1) -> list:
    """X, weight, words, bias and factors, of which one is 0."""
    variants, images, channels, height, width, filters, *kernel = size
    x = torch.randn(variants, images, channels, height, width).to(dtype)
    weight = torch.randn(filters, channels // groups, *kernel).to(dtype)
    words = pack_bits(torch.rand(variants, filters, math.prod(weight.shape[1:])) < 0.3)
    factors = torch.randn(variants)
    factors[0] = 0.0
    return [x, weight, words, torch.randn(filters).to(dtype), factors]


def pairs(groups: int = 1, **how) -> list:
    """Stride, padding, dilation and groups as the operator takes them."""
    return [
        *(
            [how.get(name, 0 if name == "padding" else 1)] * 2 if isinstance(how.get(name, 1), int) else list(how[name])
            for name in ("stride", "padding", "dilation")
        ),
        groups,
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_against_reference(capability: str, size: tuple[int, ...], geometry: str, dtype: torch.dtype) -> None:
    how = pairs(**GEOMETRIES[geometry])
    x, weight, words, bias, factors = inputs(size, dtype, how[3])
    for bias_used, factors_used in ((bias, factors), (None, None)):
        arguments = (x, weight, words, bias_used, factors_used, *how)
        y = masked_conv2d(*arguments, backend="native")
        assert y.dtype == dtype
        assert_right(y, exact.masked_conv2d(*arguments))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_transposed(capability: str, geometry: str, dtype: torch.dtype) -> None:
    how = pairs(**GEOMETRIES[geometry])
    x, weight, words, _, factors = inputs((3, 2, 6, 7, 9, 10, 3, 3), dtype, how[3])
    grad = torch.randn_like(reference.masked_conv2d(x, weight, words, None, None, *how))
    arguments = (grad, weight, words, None, factors, *how, [7, 9])
    y = masked_conv2d(*arguments, backend="native")
    assert y.shape == x.shape
    assert_right(y, exact.masked_conv2d(*arguments))


def test_both_native_paths_are_tested() -> None:
    def product(size: tuple[int, ...], geometry: str) -> bool:
        how = pairs(**GEOMETRIES[geometry])
        return product_pays(*inputs(size, torch.float32, how[3])[:2], checks.conv.geometry(*how, None))

    assert {product(size, "same") for size in SIZES} == {True, False}
    assert not product(SIZES[1], "grouped")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [SIZES[3], SIZES[5]], ids=str)
def test_removed_elements_leave_nothing_behind(capability: str, size: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight, _, bias, _ = inputs(size, dtype)
    ablated = torch.rand(weight.shape) < 0.3
    words = pack_bits(ablated.flatten(1)).expand(size[0], -1, -1)
    spoiled = torch.where(ablated, torch.where(torch.rand(weight.shape) < 0.5, torch.nan, torch.inf).to(dtype), weight)
    expected = masked_conv2d(x, weight, words, bias, padding=1, backend="native")
    assert torch.equal(masked_conv2d(x, spoiled, words, bias, padding=1, backend="native"), expected)
    factors = torch.zeros(size[0])
    assert torch.equal(masked_conv2d(x, spoiled, words, bias, factors, padding=1, backend="native"), expected)


@pytest.mark.parametrize("size", [SIZES[3], SIZES[5]], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_neither_other_variants_nor_threads_matter(capability: str, size: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight, words, bias, factors = inputs(size, dtype)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(masked_conv2d(x, weight, words, bias, factors, padding=1, backend="native"))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    alone = masked_conv2d(x[1:2], weight, words[1:2], bias, factors[1:2], padding=1, backend="native")
    assert torch.equal(alone, results[0][1:2])


def test_variants_in_several_parts(native, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, words, bias, factors = inputs((5, 2, 6, 4, 4, 34, 3, 3), torch.float32)
    expected = masked_conv2d(x, weight, words, bias, factors, padding=1, backend="native")
    module = importlib.import_module("cad_fast.ops.masked_conv2d")  # the package has the function by that name
    monkeypatch.setattr(module, "PATCHES_BYTES", 2 * 4 * 54 * 32)
    assert torch.equal(masked_conv2d(x, weight, words, bias, factors, padding=1, backend="native"), expected)


@pytest.mark.parametrize("size", [SIZES[3], SIZES[5]], ids=str)
@pytest.mark.parametrize("last", ["x", "weight", "both"])
def test_channels_last(capability: str, size: tuple[int, ...], last: str) -> None:
    x, weight, words, bias, factors = inputs(size, torch.float32)
    expected = masked_conv2d(x, weight, words, bias, factors, padding=1, backend="native")
    if last != "weight":
        x = x.movedim(-3, -1).contiguous().movedim(-1, -3)
    if last != "x":
        weight = weight.contiguous(memory_format=torch.channels_last)
    y = masked_conv2d(x, weight, words, bias, factors, padding=1, backend="native")
    right = exact.masked_conv2d(x, weight, words, bias, factors, *pairs(padding=1))
    assert_right(y, right)
    assert_right(expected, right)
    assert y[0].stride() == conv2d(x[0], weight, bias, padding=1).stride()


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(-1, -2),
        lambda x: x[..., ::2],
        lambda x: x[1:, :, :, 1:],
        lambda x: x[:1].expand(3, *[-1] * 4),
    ],
    ids=["transposed", "every-second", "offset", "expanded"],
)
def test_strides(capability: str, view) -> None:
    _, weight, words, bias, factors = inputs((4, 1, 6, 5, 5, 34, 3, 3), torch.float32)
    x = view(torch.randn(4, 2, 6, 8, 8))
    words, factors = words[: len(x)], factors[: len(x)]
    y = masked_conv2d(x, weight, words, bias, factors, padding=1, backend="native")
    assert torch.equal(y, masked_conv2d(x.contiguous(), weight, words, bias, factors, padding=1, backend="native"))
    odd = torch.randn(34, 3, 3, 12)[..., ::2].movedim(-1, 1)
    spread = words.repeat_interleave(2, -1)[..., ::2]
    y = masked_conv2d(x, odd, spread, bias, factors, padding=1, backend="native")
    assert torch.equal(y, masked_conv2d(x, odd.contiguous(), words, bias, factors, padding=1, backend="native"))


@pytest.mark.parametrize("shape", [(0, 2, 3, 4, 4), (2, 0, 3, 4, 4)], ids=str)
def test_empty(native, shape: tuple[int, ...]) -> None:
    weight, words = torch.randn(5, 3, 3, 3), torch.zeros(shape[0], 5, 1, dtype=torch.int32)
    x = torch.randn(shape)
    y = masked_conv2d(x, weight, words, padding=1, backend="native")
    assert y.shape == (*shape[:2], 5, 4, 4)
    assert masked_conv2d(y, weight, words, padding=1, input_size=(4, 4), backend="native").shape == shape


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_gradients(native, geometry: str, backend: str) -> None:
    how = pairs(**GEOMETRIES[geometry])
    x, weight, words, bias, factors = inputs((3, 2, 4, 5, 6, 6, 3, 3), torch.float32, how[3])
    for chosen in (factors, None):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        y = masked_conv2d(*leaves[:2], words, leaves[2], chosen, *how, backend=backend)
        grad = torch.randn_like(y)
        y.backward(grad)
        doubles = [t.double().requires_grad_() for t in (x, weight, bias)]
        wide = None if chosen is None else chosen.double()
        reference.masked_conv2d(*doubles[:2], words, doubles[2], wide, *how).backward(grad.double())
        for leaf, double in zip(leaves, doubles, strict=True):
            torch.testing.assert_close(leaf.grad, double.grad.float(), rtol=1e-4, atol=1e-4)


def test_second_gradient(native) -> None:
    x, weight, words, _, factors = inputs((2, 1, 4, 5, 5, 6, 3, 3), torch.float32)

    def penalty(x: torch.Tensor, weight: torch.Tensor, backend: str) -> torch.Tensor:
        y = masked_conv2d(x, weight, words, None, factors, padding=1, backend=backend)
        return torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)[0].pow(2).sum()

    leaves = [x.requires_grad_(), weight.requires_grad_()]
    native_grads = torch.autograd.grad(penalty(*leaves, "native"), leaves)
    y = reference.masked_conv2d(*leaves, words, None, factors, *pairs(padding=1))
    expected = torch.autograd.grad(torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)[0].pow(2).sum(), leaves)
    for actual, wanted in zip(native_grads, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


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
