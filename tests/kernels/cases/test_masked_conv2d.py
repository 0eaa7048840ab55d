"""masked_conv2d in Triton against the reference in float64."""

import pytest
import torch
from torch import Tensor

from cad_fast.kernels import channels_last
from cad_fast.ops import masked_conv2d, pack_bits, reference
from tests.kernels.judge import assert_right
from tests.ops import exact
from tests.ops.test_masked_conv2d import GEOMETRIES, inputs, pairs

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [
    # V, R, C, H, W, N, kh, kw
    (1, 1, 2, 5, 5, 2, 3, 3),
    (3, 1, 6, 4, 4, 34, 3, 3),
    (2, 3, 4, 5, 7, 14, 1, 2),
    (2, 1, 10, 7, 8, 66, 3, 3),
    (2, 1, 4, 10, 13, 98, 1, 1),
]
CASES = [(size, torch.float32) for size in SIZES]
CASES += [(size, dtype) for size in SIZES[1:3] for dtype in (torch.bfloat16, torch.float16)]


def on(device: torch.device, tensors: list[Tensor | None]) -> list[Tensor | None]:
    return [t if t is None else t.to(device) for t in tensors]


def check(*arguments) -> Tensor:
    y = masked_conv2d(*arguments, backend="triton")
    assert y.dtype == arguments[0].dtype
    assert_right(y, exact.masked_conv2d(*arguments))
    return y


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize(("size", "dtype"), CASES, ids=str)
def test_against_reference(device, precision, size: tuple[int, ...], geometry: str, dtype: torch.dtype) -> None:
    how = pairs(**GEOMETRIES[geometry])
    x, weight, words, bias, factors = on(device, inputs(size, dtype, how[3]))
    # Each way with every second geometry and size, as each takes its time.
    given = (bias, factors) if (len(geometry) + size[0]) % 2 else (None, None)
    check(x, weight, words, *given, *how)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("size", [(3, 2, 6, 7, 9, 10, 3, 3), (2, 1, 70, 4, 5, 36, 1, 1)], ids=str)
def test_transposed(device, size: tuple[int, ...], geometry: str, dtype: torch.dtype) -> None:
    how = pairs(**GEOMETRIES[geometry])
    x, weight, words, _, factors = on(device, inputs(size, dtype, how[3]))
    grad = torch.randn_like(reference.masked_conv2d(x, weight, words, None, None, *how))
    y = check(grad, weight, words, None, factors, *how, list(x.shape[-2:]))
    assert y.shape == x.shape


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_removed_elements_leave_nothing_behind(device, dtype: torch.dtype) -> None:
    x, weight, _, bias, _ = on(device, inputs(SIZES[3], dtype))
    ablated = torch.rand(weight.shape, device=device) < 0.3
    words = pack_bits(ablated.flatten(1)).expand(2, -1, -1)
    spoiled = weight.masked_fill(ablated, float("inf"))
    spoiled.view(-1)[ablated.flatten().nonzero().flatten()[::2]] = float("nan")
    expected = masked_conv2d(x, weight, words, bias, padding=1, backend="triton")
    for factors in (None, torch.zeros(2, device=device)):
        assert torch.equal(masked_conv2d(x, spoiled, words, bias, factors, padding=1, backend="triton"), expected)


@pytest.mark.parametrize("last", ["x", "weight", "both"])
def test_channels_last(device, last: str) -> None:
    x, weight, words, bias, factors = on(device, inputs(SIZES[3], torch.float32))
    expected = masked_conv2d(x, weight, words, bias, factors, padding=1, backend="triton")
    if last != "weight":
        x = x.movedim(-3, -1).contiguous().movedim(-1, -3)
    if last != "x":
        weight = weight.contiguous(memory_format=torch.channels_last)
    y = masked_conv2d(x, weight, words, bias, factors, padding=1, backend="triton")
    assert torch.equal(y, expected)
    assert y[0].is_contiguous(memory_format=torch.channels_last)


def test_strides(device) -> None:
    _, weight, words, bias, factors = on(device, inputs((3, 1, 6, 5, 5, 34, 3, 3), torch.float32))
    x = torch.randn(4, 2, 6, 8, 8, device=device)
    spread = words.repeat_interleave(2, -1)[..., ::2]
    for view in (x[1:, :, :, 1:], x[:3, ..., ::2], x[:3].transpose(-1, -2), x[:1].expand(3, *[-1] * 4)):
        y = masked_conv2d(view, weight, spread, bias, factors, padding=1, backend="triton")
        plain = masked_conv2d(view.contiguous(), weight, words, bias, factors, padding=1, backend="triton")
        assert torch.equal(y, plain)


@pytest.mark.parametrize("shape", [(0, 2, 3, 4, 4), (2, 0, 3, 4, 4)], ids=str)
def test_empty(device, shape: tuple[int, ...]) -> None:
    weight, words = torch.randn(5, 3, 3, 3, device=device), torch.zeros(shape[0], 5, 1).int().to(device)
    y = masked_conv2d(torch.randn(shape, device=device), weight, words, padding=1, backend="triton")
    assert y.shape == (*shape[:2], 5, 4, 4)
    assert masked_conv2d(y, weight, words, padding=1, input_size=(4, 4), backend="triton").shape == shape


def test_gradients(device) -> None:
    how = pairs(**GEOMETRIES["strided"])
    x, weight, words, bias, factors = on(device, inputs((2, 2, 4, 5, 6, 6, 3, 3), torch.float32))
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    y = masked_conv2d(*leaves[:2], words, leaves[2], factors, *how, backend="triton")
    grad = torch.randn_like(y)
    y.backward(grad)
    wide = [t.double().requires_grad_() for t in (x, weight, bias)]
    reference.masked_conv2d(*wide[:2], words, wide[2], factors.double(), *how).backward(grad.double())
    for leaf, right in zip(leaves, wide, strict=True):
        torch.testing.assert_close(leaf.grad, right.grad.float(), rtol=1e-4, atol=1e-4)


# (variants, images, channels, rows, columns, filters, kernel), and the geometry: channels by 32 take the order of
# `channels_last`, and transposed filters by 32; two groups; images smaller than the kernel.
LAST = [
    ((2, 2, 64, 5, 7, 40, 3, 3), "padded"),
    ((3, 1, 64, 6, 5, 64, 3, 2), "strided"),
    ((2, 1, 128, 5, 4, 128, 3, 3), "grouped"),
    ((1, 3, 64, 1, 2, 34, 3, 3), "padded"),
    ((2, 1, 128, 4, 5, 64, 1, 1), "pointwise"),
]
GEOMETRIES_LAST = {
    "padded": {"padding": 1},
    "strided": {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)},
    "grouped": {"stride": 2, "padding": 1, "groups": 2},
    "pointwise": {},
}


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize(("size", "geometry"), LAST, ids=str)
def test_channels_by_32(
    device, precision, monkeypatch, size: tuple[int, ...], geometry: str, dtype: torch.dtype
) -> None:
    how = pairs(**GEOMETRIES_LAST[geometry])
    x, weight, words, bias, factors = on(device, inputs(size, dtype, how[3]))
    # Each way with every second case, as each takes its time.
    bias, factors = (bias, factors) if (len(geometry) + size[0] + dtype.itemsize // 4) % 2 else (None, None)
    expected = check(x, weight, words, bias, factors, *how)
    # Whatever the order in memory, and from words that are remembered.
    views = (x.transpose(-1, -2).contiguous().transpose(-1, -2), weight.contiguous(memory_format=torch.channels_last))
    assert torch.equal(masked_conv2d(*views, words, bias, factors, *how, backend="triton"), expected)
    grad = torch.randn_like(expected)
    check(grad, weight, words, None, factors, *how, list(x.shape[-2:]))
    gathered = []
    monkeypatch.setattr(channels_last, "reorder_bits", lambda *given: gathered.append(given))
    masked_conv2d(x, weight, words, bias, factors, *how, backend="triton")
    assert gathered == [], "the order of the bits is remembered"


def test_channels_by_32_see_changed_words_and_weights(device) -> None:
    x, weight, words, bias, _ = on(device, inputs((2, 1, 64, 5, 4, 34, 3, 3), torch.float32))
    check(x, weight, words, bias, None, *pairs(padding=1))
    words.copy_(words.roll(1, 0).roll(3, 2))
    weight.data += 1
    check(x, weight, words, bias, None, *pairs(padding=1))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_removed_elements_of_channels_by_32_leave_nothing_behind(device, dtype: torch.dtype) -> None:
    x, weight, _, bias, _ = on(device, inputs((2, 1, 64, 5, 4, 34, 3, 3), dtype))
    ablated = torch.rand(weight.shape, device=device) < 0.3
    words = pack_bits(ablated.flatten(1)).expand(2, -1, -1)
    spoiled = weight.masked_fill(ablated, float("nan"))
    expected = masked_conv2d(x, weight, words, bias, padding=1, backend="triton")
    for factors in (None, torch.zeros(2, device=device)):
        assert torch.equal(masked_conv2d(x, spoiled, words, bias, factors, padding=1, backend="triton"), expected)
