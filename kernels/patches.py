"""What the convolution kernels share: a convolution as the product of a weight with patches of the images.

Offsets within the weight, one variant's words and one image are 32 bits: 64 of them cost registers that are not there.

In a group of channels the product is [m, depth] by [depth, positions]. Plain, m are the filters of the group and depth
its (channel, row, column) of the kernel; transposed, m are its channels and depth its (filter, row, column).
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from cad_fast.kernels.tiles import ablate, place, spread, times


class Images(NamedTuple):
    """Images [images, channels, height, width] of any strides."""

    data: Any
    height: int
    width: int
    image_stride: int
    channel_stride: int
    row_stride: int
    column_stride: int


class Sizes(NamedTuple):
    """How many groups of channels there are; the product of one, and its filters and channels."""

    groups: int
    m_end: int
    depth: int
    filters: int
    channels: int


class Window(NamedTuple):
    """Of a convolution what its kernels are compiled for; pairs are for rows and columns."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    transposed: bool
    last: bool = False
    """Whether depth is in the order of `channels_last`."""


class Outputs(NamedTuple):
    """The tile of a program: its number through all groups, its group, its first m; m, [BM], and which there are."""

    tile: Any
    group: Any
    start: Any
    m: Any
    inside: Any


class Positions(NamedTuple):
    """Where the sums of a program go, all [BR]: image, int64, and y and x there; `inside` says which there are."""

    image: Any
    y: Any
    x: Any
    inside: Any


def images(tensor: Tensor) -> Images:
    """A tensor [images, channels, height, width] as the kernels take it."""
    return Images(tensor, *tensor.shape[2:], *tensor.stride())


def geometry(
    x: Tensor, out: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int, input_size: Any
) -> tuple[Sizes, Window]:
    """What the kernels take for a convolution of images x to images out.

    Raises:
        ValueError: the weight or an image is too large for offsets of 32 bits.
    """
    for name, tensor in (("weight", weight), ("an image of x", x[0]), ("an image of the result", out[0])):
        reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        if reach >= 2**31:
            raise ValueError(f"{name} reaches over {reach + 1} elements, the triton kernels take at most 2**31")
    filters, channels, *kernel = weight.shape
    filters //= groups
    area = kernel[0] * kernel[1]
    transposed = input_size is not None
    m_end, depth = (channels, filters * area) if transposed else (filters, channels * area)
    pairs = (tuple(pair) for pair in (kernel, stride, padding, dilation))
    return Sizes(groups, m_end, depth, filters, channels), Window(*pairs, transposed)


@triton.jit
def place_outputs(sizes, blocks, BM: tl.constexpr, GROUP: tl.constexpr):
    """Which tile of the weight and which block of positions is this program's."""
    tiles = tl.cdiv(sizes.m_end, BM)
    tile, block = place(tiles * sizes.groups, blocks, GROUP)
    start = tile % tiles * BM
    m = start + tl.arange(0, BM)
    return Outputs(tile, tile // tiles, start, m, m < sizes.m_end), block


@triton.jit
def positions_of(out, first_image, number, inside):
    """The positions with these numbers, [BR], counted from the first of an image on."""
    image = first_image + (number // (out.height * out.width)).to(tl.int64)
    return Positions(image, number // out.width % out.height, number % out.width, inside)


@triton.jit
def element(m, d, group, sizes, WINDOW: tl.constexpr):
    """The filter and the element within it that m and d stand for."""
    AREA: tl.constexpr = WINDOW.kernel[0] * WINDOW.kernel[1]
    if WINDOW.transposed:
        filter = group * sizes.filters + d // AREA
        inside_filter = m * AREA + d % AREA
    else:
        filter = group * sizes.filters + m
        inside_filter = d
    return filter, inside_filter


@triton.jit
def element_at(weight, m, d, group, sizes, WINDOW: tl.constexpr):
    """Where the weight, which is contiguous, has the element that m and d stand for."""
    filter, inside_filter = element(m, d, group, sizes, WINDOW)
    return weight + filter * (sizes.channels * WINDOW.kernel[0] * WINDOW.kernel[1]) + inside_filter


@triton.jit
def load_patches(x, at, d, d_inside, group, sizes, WINDOW: tl.constexpr):
    """[depth, positions]: what the elements d of the kernel meet at each position, zero outside of the images x."""
    KH: tl.constexpr = WINDOW.kernel[0]
    KW: tl.constexpr = WINDOW.kernel[1]
    channel = group * (sizes.filters if WINDOW.transposed else sizes.channels) + d // (KH * KW)
    down = (d // KW % KH)[:, None] * WINDOW.dilation[0]
    right = (d % KW)[:, None] * WINDOW.dilation[1]
    if WINDOW.transposed:
        up, left = at.y[None, :] + WINDOW.padding[0] - down, at.x[None, :] + WINDOW.padding[1] - right
        row, column = up // WINDOW.stride[0], left // WINDOW.stride[1]
        inside = (up >= 0) & (left >= 0) & (up % WINDOW.stride[0] == 0) & (left % WINDOW.stride[1] == 0)
    else:
        row = at.y[None, :] * WINDOW.stride[0] - WINDOW.padding[0] + down
        column = at.x[None, :] * WINDOW.stride[1] - WINDOW.padding[1] + right
        inside = (row >= 0) & (column >= 0)
    inside = inside & (row < x.height) & (column < x.width) & d_inside[:, None] & at.inside[None, :]
    offset = channel[:, None] * x.channel_stride + row * x.row_stride + column * x.column_stride
    return tl.load((x.data + at.image * x.image_stride)[None, :] + offset, mask=inside, other=0.0)


@triton.jit
def load_bits(
    words, width, outputs, start, d, d_inside, sizes, WINDOW: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr
):
    """The words of the outputs' elements d [BD] from `start` on, and the places of their bits, as from `spread`.

    `start` is a multiple of 32 as is the first of m.
    """
    m, m_inside, group = outputs.m, outputs.inside, outputs.group
    if WINDOW.transposed and WINDOW.kernel[0] * WINDOW.kernel[1] > 1:
        # The words of neighbouring m have gaps: each element reads its own.
        filter, inside_filter = element(m[:, None], d[None, :], group, sizes, WINDOW)
        at = words + filter * width + inside_filter // 32
        packed = tl.load(at, mask=m_inside[:, None] & d_inside[None, :], other=0)
        wide, places = packed, inside_filter % 32
    else:
        if WINDOW.transposed:
            column = outputs.start // 32 + tl.arange(0, BM // 32)
            at = words + (group * sizes.filters + d)[None, :] * width + column[:, None]
            packed = tl.load(at, mask=(column < width)[:, None] & d_inside[None, :], other=0)
        else:
            column = start // 32 + tl.arange(0, BD // 32)
            at = words + (group * sizes.filters + m)[:, None] * width + column[None, :]
            packed = tl.load(at, mask=m_inside[:, None] & (column < width)[None, :], other=0)
        wide, places = spread(packed, BM, BD, WINDOW.transposed)
    return wide, places


@triton.jit
def convolution_product(
    x,
    at,
    weight,
    outputs,
    sizes,
    words,
    words_width,
    factor,
    gates,
    WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
):
    """[BM, BR], float32: the outputs at the positions, under the weight as the words ablate it, unless they are None.

    Transposed, `gates`, those of the group's filters, multiply the weight, unless they are None. What a filter would
    meet is not read where its gate is 0.
    """
    sums = tl.zeros((BM, BR), dtype=tl.float32)
    for start in range(0, sizes.depth, BD):
        d = start + tl.arange(0, BD)
        d_inside = d < sizes.depth
        inside = outputs.inside[:, None] & d_inside[None, :]
        tile_at = element_at(weight, outputs.m[:, None], d[None, :], outputs.group, sizes, WINDOW)
        tile = tl.load(tile_at, mask=inside, other=0.0)
        if words is not None:
            wide, places = load_bits(words, words_width, outputs, start, d, d_inside, sizes, WINDOW, BM, BD)
            # An element with a word and a place of its own leaves no registers for pairs.
            PAIRS: tl.constexpr = not WINDOW.transposed or WINDOW.kernel[0] * WINDOW.kernel[1] == 1
            tile = ablate(tile, wide, places, inside, factor, PAIRS)
        if gates is not None:
            gate = tl.load(gates + d // (WINDOW.kernel[0] * WINDOW.kernel[1]), mask=d_inside, other=0.0)
            tile = tl.where((gate == 0)[None, :], 0.0, times(tile, gate[None, :]))
            d_inside = d_inside & (gate != 0)
        patches = load_patches(x, at, d, d_inside, outputs.group, sizes, WINDOW)
        sums = tl.dot(tile, patches, sums, input_precision=PRECISION)
    return sums


@triton.jit
def store_images(out, at, outputs, sizes, sums, bias):
    """Add the bias [all m], unless it is None, and write the sums [m, positions] to the images."""
    channel = outputs.group * sizes.m_end + outputs.m
    if bias is not None:
        sums += tl.load(bias + channel, mask=outputs.inside, other=0.0).to(tl.float32)[:, None]
    position = at.image * out.image_stride + at.y * out.row_stride + at.x * out.column_stride
    to = (out.data + position)[None, :] + channel[:, None] * out.channel_stride
    tl.store(to, sums.to(out.data.dtype.element_ty), mask=outputs.inside[:, None] & at.inside[None, :])
