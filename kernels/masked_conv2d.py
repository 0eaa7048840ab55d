"""masked_conv2d in Triton: a product with patches that are never written out, the weight ablated on its way."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from cad_fast.kernels import configs
from cad_fast.kernels.patches import convolution_product, store_images
from cad_fast.kernels.tiles import place


@triton.jit
def masked_conv2d_kernel(
    x,
    weight,
    words,
    bias,
    factors,
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
    FACTORS: tl.constexpr,
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
    variant = (block // blocks_per_variant).to(tl.int64)
    position = block % blocks_per_variant * BR + tl.arange(0, BR)
    position_inside = position < images * out_height * out_width
    image = variant * images + position // (out_height * out_width)
    y, x_column = position // out_width % out_height, position % out_width
    factor = tl.load(factors + variant) if FACTORS else 0.0
    sums = convolution_product(
        x,
        image * x_image_stride,
        y,
        x_column,
        position_inside,
        weight,
        words + variant * groups * filters * words_width,
        factor,
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
        FACTORS,
        TRANSPOSED,
        PRECISION,
        BM,
        BR,
        BD,
    )
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


def geometry(
    x: Tensor, out: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int, input_size: Any
) -> tuple[int, int, int, int, dict[str, int | bool]]:
    """(m, depth) of a group of channels, its filters and channels, and what the kernels take as constants.

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
    sizes = (channels, filters * area) if input_size is not None else (filters, channels * area)
    named = zip(("K", "S", "P", "D"), (kernel, stride, padding, dilation), strict=True)
    constants = {f"{name}{axis}": pair[number] for name, pair in named for number, axis in enumerate("HW")}
    return *sizes, filters, channels, {**constants, "TRANSPOSED": input_size is not None}


def run(
    x: Tensor,
    weight: Tensor,
    words: Tensor,
    bias: Tensor | None,
    factors: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    input_size: Any,
    *,
    out: Tensor,
    precision: str = "ieee",
) -> Tensor:
    """See `cad_fast.ops.masked_conv2d`; the result is written to `out`, of its shape and any strides.

    `precision` is how float32 is multiplied: ieee, tf32 or tf32x3.
    """
    if out.numel() == 0:
        return out
    images, written = x.flatten(0, 1), out.flatten(0, 1)
    m_end, depth, filters, channels, constants = geometry(
        images, written, weight, stride, padding, dilation, groups, input_size
    )
    weight, words = weight.contiguous(), words.contiguous()
    bias = None if bias is None else bias.contiguous()
    factors = None if factors is None else factors.contiguous()
    positions = x.shape[1] * out.shape[3] * out.shape[4]
    config = configs.product("masked_conv2d", x, positions, precision)
    blocks_per_variant = triton.cdiv(positions, config.block_rows)
    tiles_per_group = triton.cdiv(m_end, config.block_m)
    blocks = x.shape[0] * blocks_per_variant
    masked_conv2d_kernel[(tiles_per_group * groups * blocks,)](
        images,
        weight,
        words,
        bias,
        factors,
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
        words.shape[2],
        *x.shape[3:],
        *out.shape[3:],
        *images.stride(),
        *written.stride(),
        BIASED=bias is not None,
        FACTORS=factors is not None,
        PRECISION=configs.dot_precision(x, precision),
        **constants,
        **config.blocks,
        **config.options,
    )
    return out
