"""Convolutions in Triton whose channels come by 32: they are read next to each other, and bits in that order."""

import pytest
import torch
from torch import Tensor

from cad_fast.kernels import channels_last
from cad_fast.ops import gated_conv2d, masked_conv2d, pack_bits
from tests.kernels.judge import assert_right
from tests.ops import exact
from tests.ops.cases import test_gated_conv2d, test_masked_conv2d
from tests.ops.convolutions import SAME

# (variants, images, channels, rows, columns, filters, kernel), and the geometry: channels by 32 take the order of
# `channels_last`, and transposed filters by 32; two groups; images smaller than the kernel.
SIZES = [
    ((2, 2, 64, 5, 7, 40, 3, 3), "padded"),
    ((3, 1, 64, 6, 5, 64, 3, 2), "strided"),
    ((2, 1, 128, 5, 4, 128, 3, 3), "grouped"),
    ((1, 3, 64, 1, 2, 34, 3, 3), "padded"),
    ((2, 1, 128, 4, 5, 64, 1, 1), "pointwise"),
]
# Stride, padding, dilation and groups.
GEOMETRIES = {
    "padded": SAME,
    "strided": ([2, 1], [1, 0], [1, 2], 1),
    "grouped": ([2, 2], [1, 1], [1, 1], 2),
    "pointwise": ([1, 1], [0, 0], [1, 1], 1),
}

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def on(device: torch.device, tensors: list[Tensor]) -> list[Tensor]:
    return [t.to(device) for t in tensors]


def check(op, *arguments) -> Tensor:
    y = op(*arguments, backend="triton")
    assert y.dtype == arguments[0].dtype
    assert_right(y, getattr(exact, op.__name__)(*arguments))
    return y


def other_layouts(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return x.transpose(-1, -2).contiguous().transpose(-1, -2), weight.contiguous(memory_format=torch.channels_last)


@dtypes
@pytest.mark.parametrize(("size", "geometry"), SIZES, ids=str)
def test_masked_conv2d_is_right(
    device, precision, monkeypatch, size: tuple[int, ...], geometry: str, dtype: torch.dtype
) -> None:
    how = GEOMETRIES[geometry]
    x, weight, words, bias, factors = on(device, test_masked_conv2d.inputs(size, dtype, how[3]))
    # Each way with every second case, as each takes its time.
    bias, factors = (bias, factors) if (len(geometry) + size[0] + dtype.itemsize // 4) % 2 else (None, None)
    expected = check(masked_conv2d, x, weight, words, bias, factors, *how)
    # Whatever the order in memory, and from words that are remembered.
    views = other_layouts(x, weight)
    assert torch.equal(masked_conv2d(*views, words, bias, factors, *how, backend="triton"), expected)
    grad = torch.randn_like(expected)
    check(masked_conv2d, grad, weight, words, None, factors, *how, list(x.shape[-2:]))
    gathered = []
    monkeypatch.setattr(channels_last, "reorder_bits", lambda *given: gathered.append(given))
    masked_conv2d(x, weight, words, bias, factors, *how, backend="triton")
    assert gathered == [], "the order of the bits is remembered"


@dtypes
@pytest.mark.parametrize(("size", "geometry"), SIZES[:3], ids=str)
def test_gated_conv2d_is_right(device, precision, size: tuple[int, ...], geometry: str, dtype: torch.dtype) -> None:
    how = GEOMETRIES[geometry]
    x, weight, gates, bias = on(device, test_gated_conv2d.inputs(size, dtype, how[3]))
    expected = check(gated_conv2d, x, weight, gates, bias, *how)
    assert torch.equal(gated_conv2d(*other_layouts(x, weight), gates, bias, *how, backend="triton"), expected)
    grad = torch.randn_like(expected)
    check(gated_conv2d, grad, weight, gates, None, *how, list(x.shape[-2:]))


def test_changed_words_and_weights_are_seen(device) -> None:
    case = test_masked_conv2d.inputs((2, 1, 64, 5, 4, 34, 3, 3), torch.float32)
    x, weight, words, bias, _ = on(device, case)
    check(masked_conv2d, x, weight, words, bias, None, *SAME)
    words.copy_(words.roll(1, 0).roll(3, 2))
    weight.data += 1
    check(masked_conv2d, x, weight, words, bias, None, *SAME)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_removed_elements_leave_nothing_behind(device, dtype: torch.dtype) -> None:
    x, weight, _, bias, _ = on(device, test_masked_conv2d.inputs((2, 1, 64, 5, 4, 34, 3, 3), dtype))
    ablated = torch.rand(weight.shape, device=device) < 0.3
    words = pack_bits(ablated.flatten(1)).expand(2, -1, -1)
    spoiled = weight.masked_fill(ablated, float("nan"))
    expected = masked_conv2d(x, weight, words, bias, padding=1, backend="triton")
    for factors in (None, torch.zeros(2, device=device)):
        assert torch.equal(masked_conv2d(x, spoiled, words, bias, factors, padding=1, backend="triton"), expected)
