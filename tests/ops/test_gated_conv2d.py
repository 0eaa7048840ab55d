"""gated_conv2d against the reference in float64, for every instruction set, in both layouts."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from cad_fast.ops import gated_conv2d, reference
from tests.ops import exact
from tests.ops.linear_cases import BACKENDS, with_threads
from tests.ops.test_masked_conv2d import GEOMETRIES, SIZES, pairs
from tests.rounding import assert_right

DTYPES = [torch.float32, torch.bfloat16]


def inputs(size: tuple[int, ...], dtype: torch.dtype, groups: int = 1) -> list[Tensor]:
    """X, weight, gates, of which some are 0 and some 1, and bias."""
    variants, images, channels, height, width, filters, *kernel = size
    x = torch.randn(variants, images, channels, height, width)
    weight = torch.randn(filters, channels // groups, *kernel)
    gates = torch.where(torch.rand(variants, filters) < 0.5, torch.randn(variants, filters), 1)
    gates[:, ::3] = 0
    return [t.to(dtype) for t in (x, weight, gates, torch.randn(filters))]


def check(x: Tensor, weight: Tensor, gates: Tensor, bias: Tensor | None, *how, backend: str = "native") -> Tensor:
    y = gated_conv2d(x, weight, gates, bias, *how, backend=backend)
    assert y.dtype == x.dtype
    assert_right(y, exact.gated_conv2d(x, weight, gates, bias, *how))
    return y


def test_the_reference_is_what_the_docstring_says() -> None:
    x, weight, gates, bias = (t.double() for t in inputs(SIZES[2], torch.float32))
    y = reference.gated_conv2d(x, weight, gates, bias, *pairs(padding=1))
    for v, own in enumerate(gates):
        torch.testing.assert_close(y[v], conv2d(x[v], weight * own[:, None, None, None], bias, padding=1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["planes", "channels-last"])
def test_against_reference(capability: str, size, geometry: str, dtype: torch.dtype, last: bool) -> None:
    how = pairs(**GEOMETRIES[geometry])
    x, weight, gates, bias = inputs(size, dtype, how[3])
    if last:
        x = x.movedim(-3, -1).contiguous().movedim(-1, -3)
    for given in (bias, None):
        y = check(x, weight, gates, given, *how)
    grad = torch.randn_like(y)
    assert check(grad, weight, gates, None, *how, list(x.shape[-2:])).shape == x.shape


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["planes", "channels-last"])
def test_zero_leaves_the_bias_and_one_what_there_was(capability: str, dtype: torch.dtype, last: bool) -> None:
    x, weight, gates, bias = inputs(SIZES[3], dtype)
    gates = (gates != 0).to(dtype)
    if last:
        x = x.movedim(-3, -1).contiguous().movedim(-1, -3)
    weight[::3] = torch.tensor([float("inf"), float("nan")])[torch.arange(len(weight[::3])) % 2, None, None, None]
    y = gated_conv2d(x, weight, gates, bias, padding=1, backend="native")
    plain = conv2d(x.flatten(0, 1), weight, bias, padding=1).view_as(y)
    kept = gates[:, None, :, None, None].expand_as(y) == 1
    assert torch.equal(y[kept], plain[kept])
    bare = bias[:, None, None].expand_as(y)
    assert torch.equal(y[~kept], bare[~kept]) and not kept.all()
    without = gated_conv2d(x, weight, gates, padding=1, backend="native")
    assert torch.equal(without[~kept], torch.zeros_like(without[~kept]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dropped_filters_give_no_gradient_back(capability: str, dtype: torch.dtype) -> None:
    _, weight, gates, _ = inputs(SIZES[3], dtype)
    grad = torch.randn(3, 1, 50, 8, 8).to(dtype)
    expected = gated_conv2d(grad, weight, gates, padding=1, input_size=(8, 8), backend="native")
    before = grad.masked_fill((gates == 0)[:, None, :, None, None], float("nan"))
    spoiled = before.clone()
    actual = gated_conv2d(spoiled, weight, gates, padding=1, input_size=(8, 8), backend="native")
    assert torch.equal(actual, expected)
    assert torch.equal(spoiled.nan_to_num(), before.nan_to_num())  # the argument is not written to


@pytest.mark.parametrize("last", ["x", "weight", "both"])
def test_channels_last_is_kept(last: str) -> None:
    x, weight, gates, bias = inputs(SIZES[3], torch.float32)
    right = exact.gated_conv2d(x, weight, gates, bias, *pairs(padding=1))
    if last != "weight":
        x = x.movedim(-3, -1).contiguous().movedim(-1, -3)
    if last != "x":
        weight = weight.contiguous(memory_format=torch.channels_last)
    y = gated_conv2d(x, weight, gates, bias, padding=1)
    assert_right(y, right)
    assert y[0].is_contiguous(memory_format=torch.channels_last)


def test_strides(native) -> None:
    _, weight, gates, bias = inputs((3, 1, 6, 5, 5, 34, 3, 3), torch.float32)
    x = torch.randn(4, 2, 6, 8, 8)
    spread = gates.t().contiguous().t()
    for view in (x[1:, :, :, 1:], x[:3, ..., ::2], x[:3].transpose(-1, -2), x[:1].expand(3, *[-1] * 4)):
        y = gated_conv2d(view, weight, spread, bias.repeat_interleave(2)[::2], padding=1, backend="native")
        assert_right(y, exact.gated_conv2d(view, weight, gates, bias, *pairs(padding=1)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 2, 3, 4, 4), (2, 0, 3, 4, 4)], ids=str)
def test_empty(backend: str, shape: tuple[int, ...]) -> None:
    weight, gates = torch.randn(5, 3, 3, 3), torch.ones(shape[0], 5)
    y = gated_conv2d(torch.randn(shape), weight, gates, padding=1, backend=backend)
    assert y.shape == (*shape[:2], 5, 4, 4)
    assert gated_conv2d(y, weight, gates, padding=1, input_size=(4, 4), backend=backend).shape == shape


def test_threads_do_not_matter(capability: str) -> None:
    x, weight, gates, bias = inputs((3, 2, 6, 40, 40, 66, 1, 1), torch.float32)
    for last in (False, True):
        x = x.movedim(-3, -1).contiguous().movedim(-1, -3) if last else x
        right = exact.gated_conv2d(x, weight, gates, bias, *pairs())
        for y in with_threads((1, 2, 3), lambda: gated_conv2d(x, weight, gates, bias, backend="native")):  # noqa: B023
            assert_right(y, right)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("back", [False, True], ids=["plain", "transposed"])
@pytest.mark.parametrize("geometry", ["plain", "strided", "grouped"])
def test_gradients(backend: str, back: bool, geometry: str) -> None:
    how = pairs(**GEOMETRIES[geometry])
    x, weight, gates, bias = inputs((2, 2, 4, 5, 6, 6, 3, 3), torch.float32, how[3])
    if back:
        how = [*how, list(x.shape[-2:])]
        x = torch.randn_like(reference.gated_conv2d(x, weight, gates, None, *how[:4]))
    leaves = [x, weight, gates] if back else [x, weight, gates, bias]

    def loss(function, dtype: torch.dtype, **options) -> tuple[Tensor, ...]:
        own = [t.to(dtype).requires_grad_() for t in leaves]
        y = function(*own[:3], own[3] if len(own) > 3 else None, *how, **options)
        first = torch.autograd.grad(y.pow(3).sum(), own, create_graph=True)
        return *first, *torch.autograd.grad(first[0].pow(2).sum() + first[2].pow(2).sum(), own[:3])

    actual = loss(gated_conv2d, torch.float32, backend=backend)
    for mine, right in zip(actual, loss(reference.gated_conv2d, torch.float64), strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=1e-4, atol=1e-4 * float(right.detach().abs().max()))


X, WEIGHT, GATES = torch.zeros(2, 1, 4, 6, 6), torch.zeros(5, 4, 3, 3), torch.zeros(2, 5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X.tolist(), WEIGHT, GATES), TypeError, "x must be a tensor, got list"),
        ((X, WEIGHT, GATES.double()), TypeError, "gates must have dtype torch.float32, got torch.float64"),
        ((X, WEIGHT, GATES[:, :4]), ValueError, r"gates must be \[2, 5\], got \[2, 4\]"),
        ((X, WEIGHT, GATES[:1]), ValueError, r"gates must be \[2, ...\], one row per variant of x, got \[1, 5\]"),
        ((X, WEIGHT, GATES.to("meta")), ValueError, "gates must be on cpu like x, got meta"),
        ((X[0], WEIGHT, GATES), ValueError, "x must have 5 dimensions"),
        ((X, WEIGHT, GATES, torch.zeros(4)), ValueError, r"bias must have shape \[5\], got \[4\]"),
    ],
)
def test_errors_name_the_argument(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gated_conv2d(*arguments)
