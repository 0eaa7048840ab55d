"""masked_linear: every instruction set against the reference in float64."""

import pytest
import torch
from torch import Tensor

from cad_fast.ops import masked_linear, pack_bits, reference
from cad_fast.ops.registry import OPS
from tests.ops import exact
from tests.ops.linear_cases import BACKENDS, with_threads
from tests.rounding import assert_right

DTYPES = [torch.float32, torch.bfloat16]

# (variants, rows, n, k): one row per variant, few, and more than are masked on the way; panels of 32 and blocks of 384
# steps with and without a rest; odd k.
SHAPES = [
    (1, 1, 1, 1),
    (3, 1, 33, 31),
    (11, 1, 65, 97),
    (2, 2, 31, 33),
    (3, 3, 67, 385),
    (2, 5, 127, 64),
    (2, 14, 32, 769),
    (3, 17, 129, 101),
    (2, 65, 161, 131),
    (1, 150, 40, 1555),
]


def random_case(variants: int, rows: int, n: int, k: int, dtype: torch.dtype, transposed: bool) -> tuple[Tensor, ...]:
    x = torch.randn(variants, rows, n if transposed else k).to(dtype)
    weight = torch.randn(n, k).to(dtype)
    return x, weight, pack_bits(torch.rand(variants, n, k) < 0.4), torch.randn(n).to(dtype)


def check(x: Tensor, weight: Tensor, words: Tensor, *rest, **options) -> Tensor:
    actual = masked_linear(x, weight, words, *rest, backend="native", **options)
    assert actual.dtype == x.dtype
    assert_right(actual, exact.masked_linear(x, weight, words, *rest, **options))
    return actual


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_against_reference(capability: str, shape: tuple[int, ...], dtype: torch.dtype, transposed: bool) -> None:
    x, weight, words, bias = random_case(*shape, dtype, transposed)
    check(x, weight, words, transposed=transposed)
    if not transposed:
        check(x, weight, words, bias)


@pytest.mark.parametrize("rows", range(1, 31))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_tile_height(capability: str, rows: int, dtype: torch.dtype) -> None:
    x, weight, words, bias = random_case(2, rows, 150, 70, dtype, False)
    check(x, weight, words, bias)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 4, 70])
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_factors(capability: str, rows: int, dtype: torch.dtype, transposed: bool) -> None:
    x, weight, words, bias = random_case(5, rows, 67, 133, dtype, transposed)
    factors = torch.tensor([0.0, 1.0, -1.5, 0.3, 2.0])
    check(x, weight, words, None if transposed else bias, factors, transposed=transposed)


def test_factor_one_changes_nothing(capability: str) -> None:
    for rows in (1, 40):
        x, weight, words, bias = random_case(2, rows, 70, 100, torch.float32, False)
        whole = exact.masked_linear(x, weight, torch.zeros_like(words), bias)
        assert_right(masked_linear(x, weight, words, bias, torch.ones(2), backend="native"), whole)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 3, 20, 70])
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
@pytest.mark.parametrize("factors", [None, torch.tensor([0.0, 0.0])], ids=["removed", "zero"])
def test_what_is_removed_does_not_leak(
    capability: str, rows: int, dtype: torch.dtype, transposed: bool, factors: Tensor | None, bad: float
) -> None:
    x, weight, _, _ = random_case(2, rows, 50, 80, dtype, transposed)
    mask = torch.rand(2, 50, 80) < 0.5
    mask[:, ::7, ::3] = True
    weight[::7, ::3] = bad
    check(x, weight, pack_bits(mask), None, factors, transposed=transposed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 6])
def test_strides(capability: str, rows: int, dtype: torch.dtype) -> None:
    x, weight, words, bias = random_case(3, rows, 40, 66, dtype, False)
    expected = masked_linear(x, weight, words, bias, backend="native")
    strided = [
        x.transpose(0, 2).contiguous().transpose(0, 2),
        weight.t().contiguous().t(),
        words.repeat_interleave(2, 1)[:, ::2],
        bias.repeat_interleave(2)[::2],
    ]
    assert not any(t.is_contiguous() for t in strided)
    assert torch.equal(masked_linear(*strided, backend="native"), expected)


def test_bits_behind_the_last_element_are_ignored(capability: str) -> None:
    for rows in (1, 5, 70):
        x, weight, words, bias = random_case(2, rows, 35, 77, torch.float32, False)
        behind = words.clone()
        behind[..., -1] |= -(1 << 13)
        assert torch.equal(
            masked_linear(x, weight, behind, bias, backend="native"),
            masked_linear(x, weight, words, bias, backend="native"),
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 3, 5, 7), (2, 0, 5, 7), (2, 3, 0, 7), (2, 3, 5, 0), (2, 1, 5, 0)], ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_empty(backend: str, shape: tuple[int, ...], transposed: bool) -> None:
    variants, rows, n, k = shape
    x = torch.randn(variants, rows, n if transposed else k)
    words = torch.zeros(variants, n, (k + 31) // 32, dtype=torch.int32)
    y = masked_linear(x, torch.randn(n, k), words, transposed=transposed, backend=backend)
    assert torch.equal(y, torch.zeros(variants, rows, k if transposed else n))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 5, 90])
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_rows_do_not_depend_on_their_company(capability: str, rows: int, dtype: torch.dtype, transposed: bool) -> None:
    x, weight, words, _ = random_case(9, rows, 300, 450, dtype, transposed)

    def call(chosen: slice) -> Tensor:
        return masked_linear(x[chosen], weight, words[chosen], transposed=transposed, backend="native")

    whole, *others = with_threads((1, 2, 3), lambda: call(slice(None)))
    assert all(torch.equal(other, whole) for other in others)
    assert torch.equal(call(slice(4, 7)), whole[4:7])
    if rows > 5:  # with a few, a variant's rows are summed in another order
        fewer = masked_linear(x[:, :40], weight, words, transposed=transposed, backend="native")
        assert torch.equal(fewer, whole[:, :40])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
@pytest.mark.parametrize("factors", [None, torch.tensor([0.0, -0.5, 2.0])], ids=["removed", "factors"])
def test_gradients(backend: str, transposed: bool, factors: Tensor | None) -> None:
    x, weight, words, bias = random_case(3, 4, 21, 34, torch.float32, transposed)
    inputs = [x, weight] if transposed else [x, weight, bias]

    def loss(function, dtype: torch.dtype, **options) -> tuple[Tensor, ...]:
        x, weight, *bias = own = [t.to(dtype).requires_grad_() for t in inputs]
        y = function(x, weight, words, *(bias or [None]), factors, transposed, **options)
        first = torch.autograd.grad(y.pow(3).sum(), own, create_graph=True)
        return *first, *torch.autograd.grad(first[0].pow(2).sum(), own[:2])

    actual = loss(masked_linear, torch.float32, backend=backend)
    for mine, right in zip(actual, loss(reference.masked_linear, torch.float64), strict=True):
        limit = 1e-4 * float(right.detach().abs().max())
        torch.testing.assert_close(mine.double(), right, rtol=1e-4, atol=limit)


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
