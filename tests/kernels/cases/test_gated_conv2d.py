"""gated_conv2d in Triton against the reference in float64."""

import pytest
import torch
from torch import Tensor

from cad_fast.ops import gated_conv2d, reference
from tests.kernels.cases.test_masked_conv2d import DTYPES, GEOMETRIES_LAST, LAST, SIZES, on
from tests.kernels.judge import assert_right
from tests.ops import exact
from tests.ops.test_gated_conv2d import inputs
from tests.ops.test_masked_conv2d import GEOMETRIES, pairs

CASES = [(size, torch.float32) for size in SIZES]
CASES += [(size, dtype) for size in SIZES[1:3] for dtype in (torch.bfloat16, torch.float16)]


def check(x: Tensor, weight: Tensor, gates: Tensor, bias: Tensor | None, *how) -> Tensor:
    y = gated_conv2d(x, weight, gates, bias, *how, backend="triton")
    assert y.dtype == x.dtype
    assert_right(y, exact.gated_conv2d(x, weight, gates, bias, *how))
    return y


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize(("size", "dtype"), CASES, ids=str)
def test_against_reference(device, precision, size: tuple[int, ...], geometry: str, dtype: torch.dtype) -> None:
    how = pairs(**GEOMETRIES[geometry])
    x, weight, gates, bias = on(device, inputs(size, dtype, how[3]))
    # With and without a bias, each with every second geometry and size, as each takes its time.
    check(x, weight, gates, bias if (len(geometry) + size[0]) % 2 else None, *how)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize(("size", "geometry"), LAST[:3], ids=str)
def test_channels_by_32(device, precision, size: tuple[int, ...], geometry: str, dtype: torch.dtype) -> None:
    how = pairs(**GEOMETRIES_LAST[geometry])
    x, weight, gates, bias = on(device, inputs(size, dtype, how[3]))
    expected = check(x, weight, gates, bias, *how)
    views = (x.transpose(-1, -2).contiguous().transpose(-1, -2), weight.contiguous(memory_format=torch.channels_last))
    assert torch.equal(gated_conv2d(*views, gates, bias, *how, backend="triton"), expected)
    grad = torch.randn_like(expected)
    check(grad, weight, gates, None, *how, list(x.shape[-2:]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("size", [(3, 2, 6, 7, 9, 10, 3, 3), (2, 1, 70, 4, 5, 36, 1, 1)], ids=str)
def test_transposed(device, size: tuple[int, ...], geometry: str, dtype: torch.dtype) -> None:
    how = pairs(**GEOMETRIES[geometry])
    x, weight, gates, _ = on(device, inputs(size, dtype, how[3]))
    grad = torch.randn_like(reference.gated_conv2d(x, weight, gates, None, *how))
    assert check(grad, weight, gates, None, *how, list(x.shape[-2:])).shape == x.shape


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dropped_filters_leave_nothing_behind(device, dtype: torch.dtype) -> None:
    x, weight, gates, bias = on(device, inputs(SIZES[3], dtype))
    weight[::3] = float("nan")
    y = gated_conv2d(x, weight, gates, bias, padding=1, backend="triton")
    dropped = (gates == 0)[:, None, :, None, None].expand_as(y)
    assert torch.equal(y[dropped], bias[:, None, None].expand_as(y)[dropped])
    assert y.isfinite().all()
    weight[::3] = 1
    grad = torch.randn_like(y)
    expected = gated_conv2d(grad, weight, gates, padding=1, input_size=(7, 8), backend="triton")
    for bad in (float("inf"), float("nan")):
        spoiled = grad.masked_fill(dropped, bad)
        back = gated_conv2d(spoiled, weight, gates, padding=1, input_size=(7, 8), backend="triton")
        assert torch.equal(back, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gates_of_one_change_nothing(device, dtype: torch.dtype) -> None:
    x, weight, gates, _ = on(device, inputs(SIZES[2], dtype))
    plain = check(x, weight, torch.ones_like(gates), None, *pairs(padding=1))
    y = gated_conv2d(x, weight, torch.where(gates == 1, 1, 0.0).to(dtype), padding=1, backend="triton")
    kept = (gates == 1)[:, None, :, None, None].expand_as(y)
    assert kept.any() and torch.equal(y[kept], plain[kept])


@pytest.mark.parametrize("last", ["x", "weight", "both"])
def test_channels_last(device, last: str) -> None:
    x, weight, gates, bias = on(device, inputs(SIZES[3], torch.float32))
    expected = gated_conv2d(x, weight, gates, bias, padding=1, backend="triton")
    if last != "weight":
        x = x.movedim(-3, -1).contiguous().movedim(-1, -3)
    if last != "x":
        weight = weight.contiguous(memory_format=torch.channels_last)
    y = gated_conv2d(x, weight, gates, bias, padding=1, backend="triton")
    assert torch.equal(y, expected)
    assert y[0].is_contiguous(memory_format=torch.channels_last)


def test_strides(device) -> None:
    _, weight, gates, bias = on(device, inputs((3, 1, 6, 5, 5, 34, 3, 3), torch.float32))
    x = torch.randn(4, 2, 6, 8, 8, device=device)
    spread = gates.t().contiguous().t()
    for view in (x[1:, :, :, 1:], x[:3, ..., ::2], x[:3].transpose(-1, -2), x[:1].expand(3, *[-1] * 4)):
        y = gated_conv2d(view, weight, spread, bias, padding=1, backend="triton")
        assert torch.equal(y, gated_conv2d(view.contiguous(), weight, gates, bias, padding=1, backend="triton"))


@pytest.mark.parametrize("shape", [(0, 2, 3, 4, 4), (2, 0, 3, 4, 4)], ids=str)
def test_empty(device, shape: tuple[int, ...]) -> None:
    weight, gates = torch.randn(5, 3, 3, 3, device=device), torch.ones(shape[0], 5, device=device)
    y = gated_conv2d(torch.randn(shape, device=device), weight, gates, padding=1, backend="triton")
    assert y.shape == (*shape[:2], 5, 4, 4)
    assert gated_conv2d(y, weight, gates, padding=1, input_size=(4, 4), backend="triton").shape == shape


def test_gradients(device) -> None:
    how = pairs(**GEOMETRIES["strided"])
    case = on(device, inputs((2, 2, 4, 5, 6, 6, 3, 3), torch.float32))
    leaves = [t.clone().requires_grad_() for t in case]
    y = gated_conv2d(*leaves, *how, backend="triton")
    grad = torch.randn_like(y)
    y.backward(grad)
    wide = [t.double().requires_grad_() for t in case]
    reference.gated_conv2d(*wide, *how).backward(grad.double())
    for leaf, right in zip(leaves, wide, strict=True):
        torch.testing.assert_close(leaf.grad, right.grad.float(), rtol=1e-4, atol=1e-4)
