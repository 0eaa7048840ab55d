"""edited_conv2d, wherever it runs, against the reference in float64."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from cad_fast.ops import edited_conv2d, reference
from tests.ops import exact
from tests.ops.cases.test_edited_linear import edit_of
from tests.ops.cases.test_masked_conv2d import each_geometry
from tests.ops.convolutions import GEOMETRIES, SAME, with_channels_last
from tests.ops.gradients import assert_gradients_right
from tests.ops.places import Place, over, sizes

SIZES = [
    # R, C, H, W, N, kh, kw
    (9, 2, 5, 5, 2, 3, 3),
    (11, 6, 4, 4, 34, 3, 3),
    (8, 66, 7, 5, 50, 1, 1),
    (7, 4, 13, 17, 22, 3, 1),
]
INTERPRETED = [(5, 2, 5, 5, 2, 3, 3), (5, 6, 4, 6, 34, 3, 3), (6, 34, 5, 4, 66, 1, 2)]

a_size = sizes([INTERPRETED[1]], [SIZES[1]], halves=[])


def inputs(size: tuple[int, ...], dtype: torch.dtype, groups: int = 1) -> list[Tensor]:
    """X, weight, rows, offsets, indices, factors and bias: groups without rows, without an edit, and with both.

    One edits the whole weight.
    """
    images, channels, height, width, filters, *kernel = size
    x = torch.randn(images, channels, height, width).to(dtype)
    weight = torch.randn(filters, channels // groups, *kernel).to(dtype)
    counts = (weight.numel() // 3, 0, 0, 1, weight.numel())
    edits = [torch.randperm(weight.numel())[:n].sort().values for n in counts]
    offsets = torch.tensor([0, *counts]).cumsum(0)
    factors = torch.randn(int(offsets[-1]))
    factors[::2] = 0.0
    rows = torch.tensor([0, 2, 3, 4, 4, images])
    return [x, weight, rows, offsets, torch.cat(edits), factors, torch.randn(filters).to(dtype)]


@over(every_way=True, size=sizes(INTERPRETED, SIZES, halves=INTERPRETED[1:2]))
@each_geometry
def test_against_reference(place: Place, size: tuple[int, ...], geometry: str, dtype: torch.dtype) -> None:
    how = GEOMETRIES[geometry]
    x, weight, *rest = inputs(size, dtype, how[3])
    weight = place.to(weight)
    before = weight.clone()
    y = place(edited_conv2d, x, weight, *rest, *how)
    assert y.dtype == dtype
    place.assert_right(y, exact.edited_conv2d(x, weight.cpu(), *rest, *how))
    assert torch.equal(weight, before)


@over(size=sizes(INTERPRETED[1:2], [*INTERPRETED[2:], (7, 6, 7, 9, 10, 3, 3)]))
@each_geometry
def test_transposed(place: Place, size: tuple[int, ...], geometry: str, dtype: torch.dtype) -> None:
    how = GEOMETRIES[geometry]
    x, *edit, _ = inputs(size, dtype, how[3])
    grad = torch.randn_like(conv2d(x, edit[0], None, *how))
    y = place.check(edited_conv2d, grad, *edit, None, *how, list(x.shape[-2:]))
    assert y.shape == x.shape


@over(size=a_size)
def test_removed_elements_leave_nothing_behind(place: Place, size: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight, *_, bias = inputs(size, dtype)
    removed = torch.arange(0, weight.numel(), 3)
    spoiled = weight.clone()
    spoiled.view(-1)[removed] = torch.nan
    spoiled.view(-1)[removed[::2]] = torch.inf
    edit = (torch.tensor([0, len(x)]), torch.tensor([0, len(removed)]), removed, torch.zeros(len(removed)))
    y = place.check(edited_conv2d, x, spoiled, *edit, bias, *SAME)
    assert torch.equal(y, place(edited_conv2d, x, weight, *edit, bias, *SAME))


@over(size=a_size)
@pytest.mark.parametrize("last", ["x", "weight", "both"])
def test_channels_last(place: Place, size: tuple[int, ...], last: str, dtype: torch.dtype) -> None:
    x, weight, *rest = inputs(size, dtype)
    y = place.check(edited_conv2d, *with_channels_last(x, weight, last), *rest, *SAME)
    assert y.is_contiguous(memory_format=torch.channels_last)
    if place.backend == "triton":  # sums in one order, whatever the layout
        assert torch.equal(y, place(edited_conv2d, x, weight, *rest, *SAME))


@over(size=a_size)
def test_strides(place: Place, size: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight, rows, *edit, bias = inputs(size, dtype)
    spread = [t.repeat_interleave(2)[::2] for t in (rows, *edit, bias)]
    filters = weight.repeat_interleave(2, 1)[:, ::2]
    wide = torch.randn(len(x), x.shape[1], 8, 12).to(dtype)
    for view in (x.transpose(-1, -2).contiguous().transpose(-1, -2), wide[..., ::2, 1::2], wide[:1].expand_as(wide)):
        y = place.check(edited_conv2d, view, filters, *spread, *SAME)
        if place.backend == "triton":
            assert torch.equal(y, place(edited_conv2d, view.contiguous(), weight, rows, *edit, bias, *SAME))


@over(also=("reference",), size=a_size)
def test_empty_and_without_edit(place: Place, size: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight, _, _, indices, factors, bias = inputs(size, dtype)
    zero, none = torch.zeros(2, dtype=torch.int64), (indices[:0], factors[:0])
    assert place(edited_conv2d, x[:0], weight, zero, zero, *none, bias).shape == (0, *conv2d(x, weight).shape[1:])
    rows, offsets = torch.tensor([0, 4, 4, len(x)]), torch.zeros(4, dtype=torch.int64)
    y = place.check(edited_conv2d, x, weight, rows, offsets, *none, bias, *GEOMETRIES["plain"])
    if place.device == "cpu" and place.backend == "native":
        assert torch.equal(y, conv2d(x, weight, bias))


@over(size=a_size)
def test_groups_do_not_depend_on_their_company(place: Place, size: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight, rows, *edits, bias = inputs(size, dtype)
    whole = place(edited_conv2d, x, weight, rows, *edits, bias, *SAME)
    for group in (0, 2, 4):
        own = slice(int(rows[group]), int(rows[group + 1]))
        others = torch.randn_like(x)
        others[own] = x[own]
        assert torch.equal(place(edited_conv2d, others, weight, rows, *edits, bias, *SAME)[own], whole[own])
        edit = torch.tensor([0, own.stop - own.start]), *edit_of(group, *edits)
        alone = place.check(edited_conv2d, x[own], weight, *edit, bias, *SAME)
        # On the CPU by torch, which sums in another order for another number of images.
        assert torch.equal(alone, whole[own]) or place.backend == "native"


@over(also=("reference",))
@each_geometry
def test_gradients(place: Place, geometry: str) -> None:
    how = GEOMETRIES[geometry]
    x, weight, *edit, bias = inputs((7, 4, 5, 6, 6, 3, 3), torch.float32, how[3])
    assert_gradients_right(
        lambda x, weight, bias: place(edited_conv2d, x, weight, *edit, bias, *how),
        lambda x, weight, bias: reference.edited_conv2d(x, weight, *edit, bias, *how),
        [x, weight, bias],
    )
