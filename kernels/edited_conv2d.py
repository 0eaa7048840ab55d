"""edited_conv2d in Triton: the edited elements are removed as in masked_conv2d, those with a factor are added after."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cad_fast.kernels import configs, entries
from cad_fast.kernels.entries import weights_of_entries
from cad_fast.kernels.masked_conv2d import geometry
from cad_fast.kernels.patches import convolution_product, element, load_patches, store_images
from cad_fast.kernels.tiles import place

BLOCK_ENTRIES = tl.constexpr(16)


@triton.jit
def edited_conv2d_kernel(
    x,
    weight,
    words,
    bias,
    out,
    position_blocks,
    bounds,
    entry_m,
    entry_d,
    entry_factors,
    blocks,
    tiles_per_group,
    groups,
    m_end,
    depth,
    filters,
    channels,
    words_width,
    height,
    width,
    out_height,
    out_width,
    x_image_stride,
    x_channel_stride,
    x_row_stride,
    x_column_stride,
    out_image_stride,
    out_channel_stride,
    out_row_stride,
    out_column_stride,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    BIASED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
    GROUP: tl.constexpr,
):
    m_tile, block = place(tiles_per_group * groups, blocks, GROUP)
    group = m_tile // tiles_per_group
    m_start = m_tile % tiles_per_group * BM
    m = m_start + tl.arange(0, BM)
    edit = tl.load(position_blocks + 3 * block).to(tl.int64)
    position = tl.load(position_blocks + 3 * block + 1) + tl.arange(0, BR)
    position_inside = position < tl.load(position_blocks + 3 * block + 2)
    image = (position // (out_height * out_width)).to(tl.int64)
    y, x_column = position // out_width % out_height, position % out_width
    sums = convolution_product(
        x,
        image * x_image_stride,
        y,
        x_column,
        position_inside,
        weight,
        words + edit * groups * filters * words_width,
        0.0,
        group,
        m,
        m_start,
        m_end,
        depth,
        filters,
        channels,
        words_width,
        height,
        width,
        x_channel_stride,
        x_row_stride,
        x_column_stride,
        KH,
        KW,
        SH,
        SW,
        PH,
        PW,
        DH,
        DW,
        False,
        TRANSPOSED,
        PRECISION,
        BM,
        BR,
        BD,
    )
    own = bounds + 2 * (edit * tiles_per_group * groups + m_tile)
    end = tl.load(own + 1)
    for start in range(tl.load(own), end, BLOCK_ENTRIES):
        entry = start + tl.arange(0, BLOCK_ENTRIES)
        inside = entry < end
        at_m = tl.load(entry_m + entry, mask=inside, other=0) - group * m_end
        at_d = tl.load(entry_d + entry, mask=inside, other=0)
        filter, inside_filter = element(at_m, at_d, group, filters, channels, KH * KW, TRANSPOSED)
        weight_at = weight + filter * (channels * KH * KW) + inside_filter
        tile = weights_of_entries(weight_at, entry_factors, entry, inside, m, at_m)
        patches = load_patches(
            x,
            image * x_image_stride,
            y,
            x_column,
            position_inside,
            at_d,
            inside,
            group * (filters if TRANSPOSED else channels),
            height,
            width,
            x_channel_stride,
            x_row_stride,
            x_column_stride,
            KH,
            KW,
            SH,
            SW,
            PH,
            PW,
            DH,
            DW,
            TRANSPOSED,
        )
        sums = tl.dot(tile, patches, sums, input_precision=PRECISION)
    store_images(
        out,
        image * out_image_stride,
        y,
        x_column,
        position_inside,
        sums,
        bias,
        group,
        m,
        m_end,
        out_channel_stride,
        out_row_stride,
        out_column_stride,
        BIASED,
    )


def run(
    x: Tensor,
    weight: Tensor,
    rows: Tensor,
    offsets: Tensor,
    indices: Tensor,
    factors: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    input_size: Any,
    *,
    out: Tensor,
    precision: str = "ieee",
) -> Tensor:
    """See `cad_fast.ops.edited_conv2d`; the result is written to `out`, of its shape and any strides.

    `precision` is how float32 is multiplied: ieee, tf32 or tf32x3.
    """
    if out.numel() == 0:
        return out
    m_end, depth, filters, channels, constants = geometry(x, out, weight, stride, padding, dilation, groups, input_size)
    config = configs.product("edited_conv2d", x, 1, precision)
    weight = weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    tiles = triton.cdiv(m_end, config.block_m)
    edges = entries.tile_edges(tiles, config.block_m, m_end, x.device)
    of_groups = torch.arange(groups, device=x.device)[:, None, None] * m_end
    prepared = entries.prepare(
        (weight.shape[0], weight[0].numel()),
        offsets,
        indices,
        factors,
        input_size is None,
        *_places(weight, indices, groups, input_size is not None),
        (groups * m_end, depth),
        (of_groups + edges).flatten(0, 1),
    )
    position_blocks = entries.blocks(rows * (out.shape[2] * out.shape[3]), config.block_rows, x.device)
    edited_conv2d_kernel[(tiles * groups * len(position_blocks),)](
        x,
        weight,
        prepared.words,
        bias,
        out,
        position_blocks,
        prepared.bounds,
        prepared.m,
        prepared.d,
        prepared.factors,
        len(position_blocks),
        tiles,
        groups,
        m_end,
        depth,
        filters,
        channels,
        prepared.words.shape[2],
        *x.shape[2:],
        *out.shape[2:],
        *x.stride(),
        *out.stride(),
        BIASED=bias is not None,
        PRECISION=configs.dot_precision(x, precision),
        **constants,
        **config.blocks,
        **config.options,
    )
    return out


def _places(weight: Tensor, indices: Tensor, groups: int, transposed: bool) -> tuple[Tensor, Tensor]:
    """Where elements of the flattened weight are in the product: m, through all groups of channels, and d."""
    filters, channels, *kernel = weight.shape
    area = kernel[0] * kernel[1]
    filter, inside_filter = indices // (channels * area), indices % (channels * area)
    if not transposed:
        return filter, inside_filter
    group, own = filter // (filters // groups), filter % (filters // groups)
    return group * channels + inside_filter // area, own * area + inside_filter % area
