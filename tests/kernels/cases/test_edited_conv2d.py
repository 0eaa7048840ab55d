"""edited_conv2d in Triton against the reference in float64."""

import pytest
import torch
from torch import Tensor

from cad_fast.ops import edited_conv2d, reference
from tests.kernels.judge import assert_right
from tests.ops import exact
from tests.ops.test_masked_conv2d import GEOMETRIES, pairs

SIZES = [
    # C, H, W, N, kh, kw
    (2, 5, 5, 2, 3, 3),
    (6, 4, 6, 34, 3, 3),
    (34, 5, 4, 66, 1, 2),
]
CASES = [(size, torch.float32) for size in SIZES] + [(SIZES[1], dtype) for dtype in (torch.bfloat16, torch.float16)]
ROWS = torch.tensor([0, 1, 1, 2, 3])


def case(size: tuple[int, ...], dtype: torch.dtype, groups: int, device: torch.device, share: float = 0.05) -> list:
    """X, weight, edits and bias; one group has no rows and one no entries."""
    channels, height, width, filters, *kernel = size
    x = torch.randn(3, channels, height, width).to(dtype)
    weight = torch.randn(filters, channels // groups, *kernel).to(dtype)
    edits = [(torch.rand(weight.numel()) < each).nonzero().flatten() for each in (share, share, 0, share)]
    offsets = torch.tensor([0, *map(len, edits)]).cumsum(0)
    indices = torch.cat(edits)
    factors = torch.tensor([0.0, -1.0, 0.5, 3.0])[torch.randint(4, indices.shape)]  # exact in every dtype
    bias = torch.randn(filters).to(dtype)
    on = [t.to(device) for t in (x, weight, indices, factors, bias)]
    return [*on[:2], ROWS, offsets, *on[2:]]


def check(x: Tensor, weight: Tensor, *rest) -> Tensor:
    y = edited_conv2d(x, weight, *rest, backend="triton")
    assert y.dtype == x.dtype
    assert_right(y, exact.edited_conv2d(x, weight, *rest))
    return y


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize(("size", "dtype"), CASES, ids=str)
def test_against_reference(device, precision, size: tuple[int, ...], geometry: str, dtype: torch.dtype) -> None:
    how = pairs(**GEOMETRIES[geometry])
    check(*case(size, dtype, how[3], device), *how)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize(("size", "dtype"), CASES[2:], ids=str)
def test_transposed(device, size: tuple[int, ...], geometry: str, dtype: torch.dtype) -> None:
    how = pairs(**GEOMETRIES[geometry])
    x, *rest, _ = case(size, dtype, how[3], device)
    grad = torch.randn_like(reference.edited_conv2d(x, *rest, None, *how))
    assert check(grad, *rest, None, *how, list(size[1:3])).shape == x.shape


def test_whole_weights_may_be_edited(device) -> None:
    check(*case(SIZES[1], torch.float32, 2, device, share=1.0), *pairs(**GEOMETRIES["grouped"]))


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_removed_does_not_leak(device, bad: float) -> None:
    x, weight, _, _, _, _, bias = case(SIZES[1], torch.float16, 1, device)
    indices = torch.arange(1, weight.numel(), 7, device=device)
    weight.view(-1)[indices] = bad
    offsets, factors = torch.tensor([0, len(indices)]), torch.zeros(len(indices), device=device)
    check(x, weight, torch.tensor([0, 3]), offsets, indices, factors, bias, *pairs(padding=1))


def test_layouts(device) -> None:
    x, weight, *rest = case(SIZES[1], torch.float32, 1, device)
    how = pairs(padding=1)
    expected = edited_conv2d(x, weight, *rest, *how, backend="triton")
    last = [t.contiguous(memory_format=torch.channels_last) for t in (x, weight)]
    for given in ((last[0], weight), (x, last[1]), last):
        y = edited_conv2d(*given, *rest, *how, backend="triton")
        assert torch.equal(y, expected) and y.is_contiguous(memory_format=torch.channels_last)
    sparse = torch.randn(3, 6, 8, 12, device=device)[:, :, ::2, 1::2]
    plain = edited_conv2d(sparse.contiguous(), weight, *rest, *how, backend="triton")
    assert torch.equal(edited_conv2d(sparse, weight, *rest, *how, backend="triton"), plain)


def test_images_do_not_depend_on_their_company(device) -> None:
    x, weight, rows, offsets, indices, factors, bias = case((3, 7, 7, 66, 3, 3), torch.float32, 1, device)
    how = pairs(padding=1)
    whole = edited_conv2d(x, weight, rows, offsets, indices, factors, bias, *how, backend="triton")
    own = slice(int(offsets[3]), int(offsets[4]))
    edit = torch.tensor([0, 1]), torch.tensor([0, own.stop - own.start]), indices[own], factors[own]
    assert torch.equal(edited_conv2d(x[2:], weight, *edit, bias, *how, backend="triton"), whole[2:])
