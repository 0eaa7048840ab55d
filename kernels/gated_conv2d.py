"""gated_conv2d in Triton: the sums are multiplied by their variant's gates before the bias comes to them.

Transposed, the sum runs over filters: their weights are multiplied by the gates on their way into the product, and what
they would meet is not even read where a gate is 0.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from cad_fast.kernels import configs
from cad_fast.kernels.masked_conv2d import geometry
from cad_fast.kernels.patches import element, load_patches, store_images
from cad_fast.kernels.tiles import place, times


@triton.jit
def gated_conv2d_kernel(
    x,
    weight,
    gates,
    bias,
    out,
    images,
    blocks_per_variant,
    blocks,
    tiles_per_group,
    groups,
    m_end,
    depth,
    filters,
    channels,
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
    AREA: tl.constexpr = KH * KW
    m_tile, block = place(tiles_per_group * groups, blocks, GROUP)
    group = m_tile // tiles_per_group
    m = m_tile % tiles_per_group * BM + tl.arange(0, BM)
    m_inside = m < m_end
    variant = (block // blocks_per_variant).to(tl.int64)
    position = block % blocks_per_variant * BR + tl.arange(0, BR)
    position_inside = position < images * out_height * out_width
    image = variant * images + position // (out_height * out_width)
    y, x_column = position // out_width % out_height, position % out_width
    own_gates = gates + variant * groups * filters + group * filters
    channels_in = filters if TRANSPOSED else channels
    sums = tl.zeros((BM, BR), dtype=tl.float32)
    for start in range(0, depth, BD):
        d = start + tl.arange(0, BD)
        d_inside = d < depth
        filter, inside_filter = element(m[:, None], d[None, :], group, filters, channels, AREA, TRANSPOSED)
        inside = m_inside[:, None] & d_inside[None, :]
        tile = tl.load(weight + filter * (channels * AREA) + inside_filter, mask=inside, other=0.0)
        if TRANSPOSED:
            gate = tl.load(own_gates + d // AREA, mask=d_inside, other=0.0)
            tile = tl.where((gate == 0)[None, :], 0.0, times(tile, gate[None, :]))
            d_inside = d_inside & (gate != 0)
        patches = load_patches(
            x,
            image * x_image_stride,
            y,
            x_column,
            position_inside,
            d,
            d_inside,
            group * channels_in,
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
    if not TRANSPOSED:
        gate = tl.load(own_gates + m, mask=m_inside, other=0.0).to(tl.float32)
        sums = tl.where((gate == 0)[:, None], 0.0, sums * gate[:, None])
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
    gates: Tensor,
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
    """See `cad_fast.ops.gated_conv2d`; the result is written to `out`, of its shape and any strides.

    `precision` is how float32 is multiplied: ieee, tf32 or tf32x3.
    """
    if out.numel() == 0:
        return out
    images, written = x.flatten(0, 1), out.flatten(0, 1)
    m_end, depth, filters, channels, constants = geometry(
        images, written, weight, stride, padding, dilation, groups, input_size
    )
    weight, gates = weight.contiguous(), gates.contiguous()
    bias = None if bias is None else bias.contiguous()
    positions = x.shape[1] * out.shape[3] * out.shape[4]
    config = configs.product("gated_conv2d", x, positions, precision)
    blocks_per_variant = triton.cdiv(positions, config.block_rows)
    tiles_per_group = triton.cdiv(m_end, config.block_m)
    blocks = x.shape[0] * blocks_per_variant
    gated_conv2d_kernel[(tiles_per_group * groups * blocks,)](
        images,
        weight,
        gates,
        bias,
        written,
        x.shape[1],
        blocks_per_variant,
        blocks,
        tiles_per_group,
        groups,
        m_end,
        depth,
        filters,
        channels,
        *x.shape[3:],
        *out.shape[3:],
        *images.stride(),
        *written.stride(),
        BIASED=bias is not None,
        PRECISION=configs.dot_precision(x, precision),
        **constants,
        **config.blocks,
        **config.options,
    )
    return out
