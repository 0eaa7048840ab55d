"""What the convolution kernels share: a convolution as the product of a weight with patches of the images.

Offsets within the weight, one variant's words and one image are 32 bits: 64 of them cost registers that are not there.

In a group of channels the product is [m, depth] by [depth, positions]. Plain, m are the filters of the group and depth
its (channel, row, column) of the kernel; transposed, m are its channels and depth its (filter, row, column).
"""

import triton
import triton.language as tl

from cad_fast.kernels.tiles import ablate, spread


@triton.jit
def element(m, d, group, filters, channels, AREA: tl.constexpr, TRANSPOSED: tl.constexpr):
    """The filter and the element within it that m and d stand for."""
    if TRANSPOSED:
        filter = group * filters + d // AREA
        inside_filter = m * AREA + d % AREA
    else:
        filter = group * filters + m
        inside_filter = d
    return filter, inside_filter


@triton.jit
def load_patches(
    x,
    image_offset,
    y,
    x_column,
    position_inside,
    d,
    d_inside,
    first_channel,
    height,
    width,
    channel_stride,
    row_stride,
    column_stride,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """[depth, positions]: what the elements d of the kernel meet at each position (y, x_column), zero outside.

    height and width are those of the images x, of which image_offset [positions], int64, is the one at each position.
    """
    channel = first_channel + d // (KH * KW)
    down = (d // KW % KH)[:, None] * DH
    right = (d % KW)[:, None] * DW
    if TRANSPOSED:
        up, left = y[None, :] + PH - down, x_column[None, :] + PW - right
        row, column = up // SH, left // SW
        inside = (up >= 0) & (left >= 0) & (up % SH == 0) & (left % SW == 0)
    else:
        row, column = y[None, :] * SH - PH + down, x_column[None, :] * SW - PW + right
        inside = (row >= 0) & (column >= 0)
    inside = inside & (row < height) & (column < width) & d_inside[:, None] & position_inside[None, :]
    offset = channel[:, None] * channel_stride + row * row_stride + column * column_stride
    return tl.load((x + image_offset)[None, :] + offset, mask=inside, other=0.0)


@triton.jit
def load_bits(
    words,
    group,
    m,
    d,
    m_inside,
    d_inside,
    m_start,
    d_start,
    filters,
    channels,
    width,
    BM: tl.constexpr,
    BD: tl.constexpr,
    AREA: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """[BM, BD]: the bits of elements m [BM] from m_start on and d [BD] from d_start on, both multiples of 32."""
    if TRANSPOSED and AREA > 1:  # the words of neighbouring m have gaps: each element reads its own
        filter, inside_filter = element(m[:, None], d[None, :], group, filters, channels, AREA, TRANSPOSED)
        packed = tl.load(
            words + filter * width + inside_filter // 32, mask=m_inside[:, None] & d_inside[None, :], other=0
        )
        bits = (packed >> (inside_filter % 32)) & 1
    else:
        if TRANSPOSED:
            column = m_start // 32 + tl.arange(0, BM // 32)
            at = words + (group * filters + d)[None, :] * width + column[:, None]
            packed = tl.load(at, mask=(column < width)[:, None] & d_inside[None, :], other=0)
        else:
            column = d_start // 32 + tl.arange(0, BD // 32)
            at = words + (group * filters + m)[:, None] * width + column[None, :]
            packed = tl.load(at, mask=m_inside[:, None] & (column < width)[None, :], other=0)
        bits = spread(packed, BM, BD, TRANSPOSED)
    return bits


@triton.jit
def convolution_product(
    x,
    image_offset,
    y,
    x_column,
    position_inside,
    weight,
    words,
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
    channel_stride,
    row_stride,
    column_stride,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    FACTORS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
):
    """[BM, BR], float32: outputs m of the group at the positions, under the ablated weight, which is contiguous."""
    AREA: tl.constexpr = KH * KW
    m_inside = m < m_end
    channels_in = filters if TRANSPOSED else channels
    sums = tl.zeros((BM, BR), dtype=tl.float32)
    for start in range(0, depth, BD):
        d = start + tl.arange(0, BD)
        d_inside = d < depth
        filter, inside_filter = element(m[:, None], d[None, :], group, filters, channels, AREA, TRANSPOSED)
        inside = m_inside[:, None] & d_inside[None, :]
        tile = tl.load(weight + filter * (channels * AREA) + inside_filter, mask=inside, other=0.0)
        bits = load_bits(
            words,
            group,
            m,
            d,
            m_inside,
            d_inside,
            m_start,
            start,
            filters,
            channels,
            words_width,
            BM,
            BD,
            AREA,
            TRANSPOSED,
        )
        patches = load_patches(
            x,
            image_offset,
            y,
            x_column,
            position_inside,
            d,
            d_inside,
            group * channels_in,
            height,
            width,
            channel_stride,
            row_stride,
            column_stride,
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
        tile = ablate(tile, bits, inside, factor, FACTORS)
        sums = tl.dot(tile, patches, sums, input_precision=PRECISION)
    return sums


@triton.jit
def store_images(
    out,
    image_offset,
    y,
    x_column,
    position_inside,
    sums,
    bias,
    group,
    m,
    m_end,
    channel_stride,
    row_stride,
    column_stride,
    BIASED: tl.constexpr,
):
    """Add the bias [all m] and write the sums [m, positions] to images of any strides."""
    channel = group * m_end + m
    m_inside = m < m_end
    if BIASED:
        sums += tl.load(bias + channel, mask=m_inside, other=0.0).to(tl.float32)[:, None]
    position = image_offset + y * row_stride + x_column * column_stride
    at = (out + position)[None, :] + channel[:, None] * channel_stride
    tl.store(at, sums.to(out.dtype.element_ty), mask=m_inside[:, None] & position_inside[None, :])
