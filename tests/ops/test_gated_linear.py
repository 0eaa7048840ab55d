"""gated_linear: every instruction set against the reference in float64."""

import pytest
import torch
from torch import Tensor

from cad_fast.ops import gated_linear, reference
from cad_fast.ops.registry import OPS
from tests.ops import exact
from tests.ops.linear_cases import BACKENDS, with_threads
from tests.rounding import assert_right

DTYPES = [torch.float32, torch.bfloat16]

# (variants, rows, n, k, gates): a gate per column and per block of them; tiles that hold rows of several variants, and
# variants that hold several tiles; panels of 32 and blocks of 384 steps with and without a rest.
SHAPES = [
    (1, 1, 1, 1, 1),
    (5, 1, 33, 31, 31),
    (2, 2, 31, 36, 12),
    (3, 3, 67, 385, 77),
    (2, 17, 129, 102, 102),
    (2, 65, 161, 132, 4),
    (1, 40, 40, 1555, 1555),
]


def random_case(shape: tuple[int, ...], dtype: torch.dtype, transposed: bool) -> list[Tensor]:
    variants, rows, n, k, count = shape
    x = torch.randn(variants, rows, n if transposed else k).to(dtype)
    gates = torch.randn(variants, count) * (torch.rand(variants, count) < 0.7)
    return [x, torch.randn(n, k).to(dtype), gates.to(dtype), torch.randn(n).to(dtype)]


def check(x: Tensor, weight: Tensor, gates: Tensor, bias: Tensor | None, transposed: bool, backend: str) -> Tensor:
    actual = gated_linear(x, weight, gates, bias, transposed, backend=backend)
    assert actual.dtype == x.dtype
    assert_right(actual, exact.gated_linear(x, weight, gates, bias, transposed))
    return actual


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_against_reference(capability: str, shape: tuple[int, ...], dtype: torch.dtype, transposed: bool) -> None:
    x, weight, gates, bias = random_case(shape, dtype, transposed)
    check(x, weight, gates, None, transposed, "native")
    if not transposed:
        check(x, weight, gates, bias, transposed, "native")


def test_the_reference_is_what_the_docstring_says() -> None:
    x, weight, gates, bias = (t.double() for t in random_case((3, 4, 7, 12, 4), torch.float32, False))
    for v in range(3):
        scaled = weight * gates[v].repeat_interleave(3)
        torch.testing.assert_close(
            reference.gated_linear(x, weight, gates, bias)[v], torch.nn.functional.linear(x[v], scaled, bias)
        )
        grad = x[v] @ weight.T
        torch.testing.assert_close(reference.gated_linear((x @ weight.T), weight, gates, None, True)[v], grad @ scaled)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 3, 20])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_removed_does_not_leak(capability: str, dtype: torch.dtype, rows: int, bad: float) -> None:
    x, weight, gates, bias = random_case((3, rows, 40, 90, 30), dtype, False)
    gates[:, ::4] = 0
    removed = (gates == 0).repeat_interleave(3, 1)[:, None].expand(x.shape)
    expected = gated_linear(x, weight, gates, bias, backend="native")
    spoiled = x.masked_fill(removed, bad)
    assert torch.equal(gated_linear(spoiled, weight, gates, bias, backend="native"), expected)
    back = gated_linear(torch.full((3, rows, 40), bad).to(dtype), weight, gates, None, True, backend="native")
    assert torch.equal(back[removed], torch.zeros_like(back[removed]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gates_of_one_give_the_plain_product(capability: str, dtype: torch.dtype) -> None:
    x, weight, gates, bias = random_case((2, 9, 40, 90, 45), dtype, False)
    none = torch.zeros(2, 40, 3, dtype=torch.int32)
    plain = exact.masked_linear(x, weight, none, bias)  # which knows of no rounding of the input
    assert_right(gated_linear(x, weight, torch.ones_like(gates), bias, backend="native"), plain)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_strides(capability: str, dtype: torch.dtype, transposed: bool) -> None:
    x, weight, gates, bias = random_case((3, 6, 40, 66, 22), dtype, transposed)
    more = None if transposed else bias
    expected = gated_linear(x, weight, gates, more, transposed, backend="native")
    strided = [
        x.transpose(0, 2).contiguous().transpose(0, 2),
        weight.t().contiguous().t(),
        gates.t().contiguous().t(),
        None if transposed else bias.repeat_interleave(2)[::2],
    ]
    assert not any(t.is_contiguous() for t in strided if t is not None)
    actual = gated_linear(*strided, transposed, backend="native")
    if transposed:  # by torch, which has other kernels for other strides
        assert_right(actual, exact.gated_linear(x, weight, gates, None, True))
    else:
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 3, 5, 7, 7), (2, 0, 5, 7, 7), (2, 3, 0, 7, 1), (2, 3, 5, 0, 0)], ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_empty(backend: str, shape: tuple[int, ...], transposed: bool) -> None:
    variants, rows, n, k, _ = shape
    x, weight, gates, _ = (t.requires_grad_() for t in random_case(shape, torch.float32, transposed))
    y = gated_linear(x, weight, gates, transposed=transposed, backend=backend)
    assert torch.equal(y, torch.zeros(variants, rows, k if transposed else n))
    grads = torch.autograd.grad(y.sum(), [x, weight, gates])
    assert all(torch.equal(g, torch.zeros_like(t)) for g, t in zip(grads, (x, weight, gates), strict=True))


@pytest.mark.parametrize("rows", [1, 5, 90])
def test_rows_do_not_depend_on_their_company(capability: str, rows: int) -> None:
    x, weight, gates, bias = random_case((9, rows, 300, 450, 90), torch.float32, False)

    def call(chosen: slice) -> Tensor:
        return gated_linear(x[chosen], weight, gates[chosen], bias, backend="native")

    whole, *others = with_threads((1, 2, 3), lambda: call(slice(None)))
    assert all(torch.equal(other, whole) for other in others)
    assert torch.equal(call(slice(4, 7)), whole[4:7])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_gradients(backend: str, transposed: bool) -> None:
    """Once and twice, at gates of which some are 0, of everything that has one."""
    x, weight, gates, bias = random_case((3, 4, 21, 34, 17), torch.float32, transposed)
    assert (gates == 0).any()
    inputs = [x, weight, gates] if transposed else [x, weight, gates, bias]

    def loss(function, dtype: torch.dtype, **options) -> tuple[Tensor, ...]:
        own = [t.to(dtype).requires_grad_() for t in inputs]
        y = function(*own[:3], own[3] if len(own) > 3 else None, transposed, **options)
        first = torch.autograd.grad(y.pow(3).sum(), own, create_graph=True)
        once = torch.autograd.grad(function(*own[:3], None, transposed, **options).pow(3).sum(), own[:3])
        return *first, *once, *torch.autograd.grad(first[0].pow(2).sum() + first[2].pow(2).sum(), own[:3])

    actual = loss(gated_linear, torch.float32, backend=backend)
    for mine, right in zip(actual, loss(reference.gated_linear, torch.float64), strict=True):
        limit = 1e-4 * float(right.detach().abs().max())
        torch.testing.assert_close(mine.double(), right, rtol=1e-4, atol=limit)


@pytest.mark.parametrize("needed", [(0,), (2,), (0, 2)], ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_gradients_of_some(needed: tuple[int, ...], transposed: bool) -> None:
    case = random_case((3, 4, 21, 34, 17), torch.float32, transposed)[:3]
    results = []
    for function in (gated_linear, reference.gated_linear):
        own = [t.clone().requires_grad_(i in needed) for i, t in enumerate(case)]
        y = function(*own, None, transposed)
        results.append(torch.autograd.grad(y.pow(2).sum(), [own[i] for i in needed]))
    for mine, right in zip(*results, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-4 * float(right.abs().max()))


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
