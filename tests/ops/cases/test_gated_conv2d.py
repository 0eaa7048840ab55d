"""gated_conv2d, wherever it runs, against the reference in float64, in both layouts."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from cad_fast.ops import gated_conv2d, reference
from tests.ops.cases.test_masked_conv2d import INTERPRETED, SIZES, all_sizes, each_geometry
from tests.ops.convolutions import GEOMETRIES, SAME, channels_last, with_channels_last
from tests.ops.gradients import assert_gradients_right
from tests.ops.places import Place, over, sizes

a_size = sizes([INTERPRETED[3]], [SIZES[3]])
in_both_layouts = pytest.mark.parametrize("last", [False, True], ids=["planes", "channels-last"])


def layouts(place: Place, dtype: torch.dtype) -> list[bool]:
    """Planes, and channels last; in the interpreter, where they take their time, the kernels have planes alone."""
    return [False] if place.name == "triton" else [False, True]


def inputs(size: tuple[int, ...], dtype: torch.dtype, groups: int = 1) -> list[Tensor]:
    """X, weight, gates, of which some are 0 and some 1, and bias."""
    variants, images, channels, height, width, filters, *kernel = size
    x = torch.randn(variants, images, channels, height, width)
    weight = torch.randn(filters, channels // groups, *kernel)
    gates = torch.where(torch.rand(variants, filters) < 0.5, torch.randn(variants, filters), 1)
    gates[:, ::3] = 0
    return [t.to(dtype) for t in (x, weight, gates, torch.randn(filters))]


@over(every_way=True, also=("vendor",), size=all_sizes, last=sizes([False], [False, True]))
@each_geometry
def test_against_reference(place: Place, size: tuple[int, ...], geometry: str, dtype: torch.dtype, last: bool) -> None:
    how = GEOMETRIES[geometry]
    x, weight, gates, bias = inputs(size, dtype, how[3])
    ways = [None, bias]
    if place.kind == "interpreted":  # each way with every second geometry and size, as each takes its time
        ways = [ways[(len(geometry) + size[0]) % 2]]
    for way in ways:
        place.check(gated_conv2d, channels_last(x) if last else x, weight, gates, way, *how)


@over(also=("vendor",), last=layouts)
@pytest.mark.parametrize("size", [(3, 2, 6, 7, 9, 10, 3, 3), (2, 1, 70, 4, 5, 36, 1, 1)], ids=str)
@each_geometry
def test_transposed(place: Place, size: tuple[int, ...], geometry: str, dtype: torch.dtype, last: bool) -> None:
    how = GEOMETRIES[geometry]
    x, weight, gates, _ = inputs(size, dtype, how[3])
    grad = torch.randn_like(reference.gated_conv2d(x, weight, gates, None, *how))
    grad = channels_last(grad) if last else grad
    y = place.check(gated_conv2d, grad, weight, gates, None, *how, list(x.shape[-2:]))
    assert y.shape == x.shape


@over(size=a_size)
@in_both_layouts
def test_zero_leaves_the_bias_and_one_what_there_was(
    place: Place, size: tuple[int, ...], dtype: torch.dtype, last: bool
) -> None:
    x, weight, gates, bias = inputs(size, dtype)
    x = channels_last(x) if last else x
    gates = (gates == 1).to(dtype)
    weight[::3] = torch.tensor([float("inf"), float("nan")])[torch.arange(len(weight[::3])) % 2, None, None, None]
    y = place(gated_conv2d, x, weight, gates, bias, *SAME)
    kept = gates[:, None, :, None, None].expand_as(y) == 1
    assert kept.any() and not kept.all() and y.isfinite().all()
    plain = place(gated_conv2d, x, weight, torch.ones_like(gates), bias, *SAME)
    assert torch.equal(y[kept], plain[kept])
    if place.backend == "native":
        assert torch.equal(y[kept], conv2d(x.flatten(0, 1), weight, bias, padding=1).view_as(y)[kept])
    assert torch.equal(y[~kept], bias[:, None, None].expand_as(y)[~kept])
    without = place(gated_conv2d, x, weight, gates, None, *SAME)
    assert torch.equal(without[~kept], torch.zeros_like(without[~kept]))


@over(size=a_size)
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_dropped_filters_give_no_gradient_back(
    place: Place, size: tuple[int, ...], dtype: torch.dtype, bad: float
) -> None:
    x, weight, gates, _ = inputs(size, dtype)
    image = list(x.shape[-2:])
    grad = torch.randn(*x.shape[:2], len(weight), *image).to(dtype)
    expected = place(gated_conv2d, grad, weight, gates, None, *SAME, image)
    spoiled = place.to(grad.masked_fill((gates == 0)[:, None, :, None, None], bad))
    before = spoiled.clone()
    assert torch.equal(place(gated_conv2d, spoiled, weight, gates, None, *SAME, image), expected)
    assert torch.equal(spoiled.nan_to_num(), before.nan_to_num()), "the argument is written to"


@over(also=("vendor",), size=a_size)
@pytest.mark.parametrize("last", ["x", "weight", "both"])
def test_channels_last(place: Place, size: tuple[int, ...], last: str, dtype: torch.dtype) -> None:
    x, weight, *rest = inputs(size, dtype)
    y = place.check(gated_conv2d, *with_channels_last(x, weight, last), *rest, *SAME)
    assert y[0].is_contiguous(memory_format=torch.channels_last)
    if place.backend == "triton":  # sums in one order, whatever the layout
        assert torch.equal(y, place(gated_conv2d, x, weight, *rest, *SAME))


def test_strides(place: Place, dtype: torch.dtype) -> None:
    _, weight, gates, bias = inputs((3, 1, 6, 5, 5, 34, 3, 3), dtype)
    x = torch.randn(4, 2, 6, 8, 8).to(dtype)
    spread, wide = gates.t().contiguous().t(), bias.repeat_interleave(2)[::2]
    for view in (x[1:, :, :, 1:], x[:3, ..., ::2], x[:3].transpose(-1, -2), x[:1].expand(3, *[-1] * 4)):
        y = place.check(gated_conv2d, view, weight, spread, wide, *SAME)
        if place.backend == "triton":
            assert torch.equal(y, place(gated_conv2d, view.contiguous(), weight, gates, bias, *SAME))


@over(also=("reference", "vendor"))
@pytest.mark.parametrize("shape", [(0, 2, 3, 4, 4), (2, 0, 3, 4, 4)], ids=str)
def test_empty(place: Place, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight, gates = torch.randn(5, 3, 3, 3).to(dtype), torch.ones(shape[0], 5, dtype=dtype)
    y = place(gated_conv2d, torch.randn(shape).to(dtype), weight, gates, padding=1)
    assert y.shape == (*shape[:2], 5, 4, 4)
    assert place(gated_conv2d, y, weight, gates, padding=1, input_size=(4, 4)).shape == shape


@over(also=("reference",))
@pytest.mark.parametrize("back", [False, True], ids=["plain", "transposed"])
@each_geometry
def test_gradients(place: Place, back: bool, geometry: str) -> None:
    how = GEOMETRIES[geometry]
    x, weight, gates, bias = inputs((2, 2, 4, 5, 6, 6, 3, 3), torch.float32, how[3])
    leaves = [x, weight, gates, bias]
    if back:
        leaves = [torch.randn_like(reference.gated_conv2d(x, weight, gates, None, *how)), weight, gates]
        how = (*how, list(x.shape[-2:]))
    assert_gradients_right(
        lambda x, weight, gates, bias=None: place(gated_conv2d, x, weight, gates, bias, *how),
        lambda x, weight, gates, bias=None: reference.gated_conv2d(x, weight, gates, bias, *how),
        leaves,
    )
