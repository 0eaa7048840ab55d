"""Convolutions in the depth order (row, column, channel) of the kernel, for images whose channels lie side by side.

A step of the sum stays within one place of the kernel, so what it reads of an image is a run of channels for each
position: wide copies, and one comparison with the image's edges per position. In the order (channel, row, column) of
`patches` every element has an address and a comparison of its own.

Images and weights that are not in torch's `channels_last` format are copied to it. Words are reordered once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cad_fast.kernels import configs
from cad_fast.kernels.configs import Config
from cad_fast.kernels.patches import Sizes, Window
from cad_fast.kernels.tiles import ablate, spread
from cad_fast.remembered import remembered


@triton.jit
def reorder_bits_kernel(words, ordered, count, width, channels, AREA: tl.constexpr, BW: tl.constexpr):
    """Bits of filters [channels, AREA] to bits of filters [AREA, channels], of which there are `count` words."""
    number = tl.program_id(0).to(tl.int64) * BW + tl.arange(0, BW)
    inside = number < count
    per_filter = AREA * (channels // 32)
    filter, column = number // per_filter, (number % per_filter).to(tl.int32)
    place, first = column // (channels // 32), column % (channels // 32) * 32
    packed = tl.zeros((BW,), dtype=tl.int32)
    for bit in tl.static_range(32):
        element = (first + bit) * AREA + place
        word = tl.load(words + filter * width + element // 32, mask=inside, other=0)
        packed |= ((word >> (element % 32)) & 1) << bit
    tl.store(ordered + number, packed, mask=inside)


def reorder_bits(words: Tensor, channels: int, area: int) -> Tensor:
    """Words [.., filters, width] of filters [channels, area] to those of [area, channels]; channels by 32."""
    words = words.contiguous()
    ordered = torch.empty((*words.shape[:-1], area * channels // 32), dtype=torch.int32, device=words.device)
    if ordered.numel() > 0:
        reorder_bits_kernel[(triton.cdiv(ordered.numel(), configs.BLOCK_COUNTED),)](
            words,
            ordered,
            ordered.numel(),
            words.shape[-1],
            channels,
            AREA=area,
            BW=configs.BLOCK_COUNTED,
            **configs.OPTIONS_OF_BITS,
        )
    return ordered


def arrange(
    op: str,
    x: Tensor,
    weight: Tensor,
    words: Tensor | None,
    positions: int,
    precision: str,
    sizes: Sizes,
    window: Window,
) -> tuple[Config, Window, Tensor, Tensor, Tensor | None]:
    """The configuration, and what the kernel of an operator takes: in this order where sizes allow it, else as it is.

    x [images, channels, height, width]; words [variants, filters, width], or None.
    """
    config = configs.product(f"{op}_last", x, positions, precision)
    inner = sizes.filters if window.transposed else sizes.channels
    if inner % config.block_depth or sizes.channels % 32:
        words = None if words is None else words.contiguous()
        return configs.product(op, x, positions, precision), window, x, weight.contiguous(), words
    area = window.kernel[0] * window.kernel[1]
    x = x.contiguous(memory_format=torch.channels_last)
    # Not remembered: `weight.data += ..` of those who merge adapters changes neither the tensor nor its version.
    weight = weight.contiguous(memory_format=torch.channels_last)
    if words is not None and area == 1:
        words = words.contiguous()
    elif words is not None:
        given, key = words, (sizes.channels, area)
        words = remembered("words with channels last, in Triton", [words], key, lambda: reorder_bits(given, *key))
    return config, window._replace(last=True), x, weight, words


@triton.jit
def tap_positions(x, at, down, right, WINDOW: tl.constexpr):
    """Row and column of the images x that one place of the kernel meets at each position; which there are; [BR]."""
    if WINDOW.transposed:
        up = at.y + WINDOW.padding[0] - down * WINDOW.dilation[0]
        left = at.x + WINDOW.padding[1] - right * WINDOW.dilation[1]
        row, column = up // WINDOW.stride[0], left // WINDOW.stride[1]
        inside = (up >= 0) & (left >= 0) & (up % WINDOW.stride[0] == 0) & (left % WINDOW.stride[1] == 0)
    else:
        row = at.y * WINDOW.stride[0] - WINDOW.padding[0] + down * WINDOW.dilation[0]
        column = at.x * WINDOW.stride[1] - WINDOW.padding[1] + right * WINDOW.dilation[1]
        inside = (row >= 0) & (column >= 0)
    return row, column, inside & (row < x.height) & (column < x.width) & at.inside


@triton.jit
def channels_last_product(
    x,
    at,
    weight,
    outputs,
    sizes,
    words,
    words_width,
    factor,
    WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
):
    """[BM, BR], float32: as `patches.convolution_product`, for what `arrange` gives."""
    KW: tl.constexpr = WINDOW.kernel[1]
    AREA: tl.constexpr = WINDOW.kernel[0] * KW
    d = tl.arange(0, BD)
    inside = outputs.inside[:, None]
    first_filter = outputs.group * sizes.filters
    if WINDOW.transposed:
        inner = sizes.filters
        weight_at = weight + (first_filter + d)[None, :] * (AREA * sizes.channels) + outputs.m[:, None]
        word = outputs.start // 32 + tl.arange(0, BM // 32)
        if words is not None:
            words_at = words + (first_filter + d)[None, :] * words_width + word[:, None]
        words_inside = (word < sizes.channels // 32)[:, None]
    else:
        inner = sizes.channels
        filter = (first_filter + outputs.m)[:, None]
        weight_at = weight + filter * (AREA * sizes.channels) + d[None, :]
        if words is not None:
            words_at = words + filter * words_width + tl.arange(0, BD // 32)[None, :]
        words_inside = inside
    x_at = x.data + at.image * x.image_stride
    steps = inner // BD
    sums = tl.zeros((BM, BR), dtype=tl.float32)
    for step in range(0, AREA * steps):
        tap = step // steps
        first = (step - tap * steps) * BD
        if WINDOW.transposed:
            tile = tl.load(weight_at + (first * AREA + tap) * sizes.channels, mask=inside, other=0.0)
        else:
            tile = tl.load(weight_at + (tap * sizes.channels + first), mask=inside, other=0.0)
        if words is not None:
            if WINDOW.transposed:
                offset = first * words_width + tap * (sizes.channels // 32)
            else:
                offset = step * (BD // 32)
            packed = tl.load(words_at + offset, mask=words_inside, other=0)
            wide, places = spread(packed, BM, BD, WINDOW.transposed)
            tile = ablate(tile, wide, places, inside, factor)
        row, column, row_inside = tap_positions(x, at, tap // KW, tap % KW, WINDOW)
        channel = outputs.group * inner + first + d
        offsets = (row * x.row_stride + column * x.column_stride)[None, :] + channel[:, None] * x.channel_stride
        patches = tl.load(x_at[None, :] + offsets, mask=row_inside[None, :], other=0.0)
        sums = tl.dot(tile, patches, sums, input_precision=PRECISION)
    return sums
