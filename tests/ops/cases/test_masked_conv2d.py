"""masked_conv2d, wherever it runs, against the reference in float64."""

import math

import pytest
import torch
from torch import Tensor

from cad_fast.ops import masked_conv2d, pack_bits, reference
from tests.ops.convolutions import GEOMETRIES, SAME, with_channels_last
from tests.ops.gradients import assert_gradients_right
from tests.ops.places import Place, over, sizes

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
INTERPRETED = [*SIZES[:3], (2, 1, 10, 7, 8, 66, 3, 3), (2, 1, 4, 10, 13, 98, 1, 1)]

all_sizes = sizes(INTERPRETED, SIZES, halves=INTERPRETED[1:3])
some_sizes = sizes([INTERPRETED[3]], [SIZES[3], SIZES[5]])
each_geometry = pytest.mark.parametrize("geometry", GEOMETRIES)


def inputs(size: tuple[int, ...], dtype: torch.dtype, groups: int = 1) -> tuple[Tensor, ...]:
    """X, weight, words, bias and factors, of which one is 0; the bits behind the last element are set."""
    variants, images, channels, height, width, filters, *kernel = size
    x = torch.randn(variants, images, channels, height, width).to(dtype)
    weight = torch.randn(filters, channels // groups, *kernel).to(dtype)
    depth = math.prod(weight.shape[1:])
    words = pack_bits(torch.rand(variants, filters, depth) < 0.3)
    words[..., -1:] |= -1 << depth % 32 if depth % 32 else 0
    factors = torch.randn(variants)
    factors[0] = 0.0
    return x, weight, words, torch.randn(filters).to(dtype), factors


@over(every_way=True, also=("vendor",), size=all_sizes)
@each_geometry
def test_against_reference(place: Place, size: tuple[int, ...], geometry: str, dtype: torch.dtype) -> None:
    how = GEOMETRIES[geometry]
    x, weight, words, bias, factors = inputs(size, dtype, how[3])
    ways = [(None, None), (bias, factors)]
    if place.kind == "interpreted":  # each way with every second geometry and size, as each takes its time
        ways = [ways[(len(geometry) + size[0]) % 2]]
    for way in ways:
        place.check(masked_conv2d, x, weight, words, *way, *how)


@over(also=("vendor",))
@pytest.mark.parametrize("size", [(3, 2, 6, 7, 9, 10, 3, 3), (2, 1, 70, 4, 5, 36, 1, 1)], ids=str)
@each_geometry
def test_transposed(place: Place, size: tuple[int, ...], geometry: str, dtype: torch.dtype) -> None:
    how = GEOMETRIES[geometry]
    x, weight, words, _, factors = inputs(size, dtype, how[3])
    grad = torch.randn_like(reference.masked_conv2d(x, weight, words, None, None, *how))
    y = place.check(masked_conv2d, grad, weight, words, None, factors, *how, list(x.shape[-2:]))
    assert y.shape == x.shape


@over(size=some_sizes)
def test_removed_elements_leave_nothing_behind(place: Place, size: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight, _, bias, _ = inputs(size, dtype)
    ablated = torch.rand(weight.shape) < 0.3
    words = pack_bits(ablated.flatten(1)).expand(size[0], -1, -1)
    spoiled = torch.where(ablated, torch.where(torch.rand(weight.shape) < 0.5, torch.nan, torch.inf).to(dtype), weight)
    expected = place(masked_conv2d, x, weight, words, bias, None, *SAME)
    for factors in (None, torch.zeros(size[0])):
        assert torch.equal(place(masked_conv2d, x, spoiled, words, bias, factors, *SAME), expected)


@over(size=some_sizes)
def test_infinite_factors_reach_ablated_weights_alone(place: Place, size: tuple[int, ...], dtype: torch.dtype) -> None:
    """Bits behind the last element are ignored."""
    x, weight, words, bias, _ = inputs(size, dtype)
    depth, factors = weight[0].numel(), torch.full((size[0],), float("inf"))
    assert depth % 32
    expected = place.check(masked_conv2d, x, weight, torch.zeros_like(words), bias, factors, *SAME)
    words[:] = 0
    words[..., -1] = -1 << depth % 32
    assert torch.equal(place(masked_conv2d, x, weight, words, bias, factors, *SAME), expected)


@over(size=some_sizes)
def test_variants_do_not_depend_on_their_company(place: Place, size: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight, words, bias, factors = inputs(size, dtype)
    whole = place(masked_conv2d, x, weight, words, bias, factors, *SAME)
    alone = place(masked_conv2d, x[1:2], weight, words[1:2], bias, factors[1:2], *SAME)
    assert torch.equal(alone, whole[1:2])


@over(also=("vendor",), size=some_sizes)
@pytest.mark.parametrize("last", ["x", "weight", "both"])
def test_channels_last(place: Place, size: tuple[int, ...], last: str, dtype: torch.dtype) -> None:
    x, weight, *rest = inputs(size, dtype)
    y = place.check(masked_conv2d, *with_channels_last(x, weight, last), *rest, *SAME)
    assert y[0].is_contiguous(memory_format=torch.channels_last)
    if place.backend == "triton":  # sums in one order, whatever the layout
        assert torch.equal(y, place(masked_conv2d, x, weight, *rest, *SAME))


def test_strides(place: Place, dtype: torch.dtype) -> None:
    _, weight, words, bias, factors = inputs((3, 1, 6, 5, 5, 34, 3, 3), dtype)
    x = torch.randn(4, 2, 6, 8, 8).to(dtype)
    spread, odd = words.repeat_interleave(2, -1)[..., ::2], weight.repeat_interleave(2, 3)[..., ::2]
    for view in (x[1:, :, :, 1:], x[:3, ..., ::2], x[:3].transpose(-1, -2), x[:1].expand(3, *[-1] * 4)):
        y = place(masked_conv2d, view, odd, spread, bias, factors, *SAME)
        assert torch.equal(y, place(masked_conv2d, view.contiguous(), weight, words, bias, factors, *SAME))


@over(also=("reference", "vendor"))
@pytest.mark.parametrize("shape", [(0, 2, 3, 4, 4), (2, 0, 3, 4, 4)], ids=str)
def test_empty(place: Place, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight, words = torch.randn(5, 3, 3, 3).to(dtype), torch.zeros(shape[0], 5, 1, dtype=torch.int32)
    y = place(masked_conv2d, torch.randn(shape).to(dtype), weight, words, padding=1)
    assert y.shape == (*shape[:2], 5, 4, 4)
    assert place(masked_conv2d, y, weight, words, padding=1, input_size=(4, 4)).shape == shape


@over(also=("reference",))
@pytest.mark.parametrize("with_factors", [False, True], ids=["removed", "factors"])
@each_geometry
def test_gradients(place: Place, geometry: str, with_factors: bool) -> None:
    how = GEOMETRIES[geometry]
    x, weight, words, bias, factors = inputs((3, 2, 4, 5, 6, 6, 3, 3), torch.float32, how[3])
    given = factors if with_factors else None
    assert_gradients_right(
        lambda x, weight, bias: place(masked_conv2d, x, weight, words, bias, given, *how),
        lambda x, weight, bias: reference.masked_conv2d(x, weight, words, bias, given, *how),
        [x, weight, bias],
    )
