"""What the kernels with ablated weights share: the order of programs, bits in registers, and the product over a depth.

Products are weight by rows, [BM, BD] @ [BD, BR]: the ablated weight can then be the operand that matrix instructions
read from registers, and few rows cost little, as only the side of the weight has a least size of 64.
"""

import triton
import triton.language as tl


@triton.jit
def place(tiles_m, blocks, GROUP: tl.constexpr):
    """Which tile of the weight and which block of rows is this program's.

    Blocks, and with them the variants, run fastest but for GROUP tiles of the weight: whoever needs these tiles runs at
    about the same time and finds them in L2.
    """
    program = tl.program_id(0)
    per_group = GROUP * blocks
    first = program // per_group * GROUP
    size = tl.minimum(tiles_m - first, GROUP)
    inside = program % per_group
    return first + inside % size, inside // size


@triton.jit
def rows_of_variant(block, blocks_per_variant, rows, BR: tl.constexpr):
    """The variant of a block, int64, its rows [BR] counted within the variant, and which of them there are."""
    variant = (block // blocks_per_variant).to(tl.int64)
    row = block % blocks_per_variant * BR + tl.arange(0, BR)
    return variant, row, row < rows


@triton.jit
def spread(words, BM: tl.constexpr, BD: tl.constexpr, ALONG_M: tl.constexpr):
    """Words [BM, BD / 32], or [BM / 32, BD] if ALONG_M, to [BM, BD] with the bit of each element lowest."""
    if ALONG_M:
        wide = tl.reshape(tl.broadcast_to(words[:, None, :], (BM // 32, 32, BD)), (BM, BD))
        bits = wide >> (tl.arange(0, BM) % 32)[:, None]
    else:
        wide = tl.reshape(tl.broadcast_to(words[:, :, None], (BM, BD // 32, 32)), (BM, BD))
        bits = wide >> (tl.arange(0, BD) % 32)[None, :]
    return bits & 1


@triton.jit
def times(tile, factor):
    """Elements times factors, both rounded to the elements' dtype."""
    # Through float32, in which the product of two shorter floats is exact: it is rounded once.
    return (tile.to(tl.float32) * factor.to(tile.dtype).to(tl.float32)).to(tile.dtype)


@triton.jit
def ablate(tile, bits, inside, factor):
    """The tile with the elements whose bit is set multiplied by the factor; exactly zero where that rounds to zero.

    None stands for a factor of 0.
    """
    if factor is not None:
        scaled = tl.where(factor.to(tile.dtype).to(tl.float32) == 0, 0.0, times(tile, factor))
        # Bits behind the end mean nothing, and an infinite factor would make NaN of the zeros there.
        result = tl.where((bits != 0) & inside, scaled, tile)
    else:
        result = tl.where(bits != 0, 0.0, tile)
    return result


@triton.jit
def linear_product(
    x,
    x_depth_stride,
    row_offsets,
    row_inside,
    weight,
    m_stride,
    d_stride,
    words,
    width,
    factor,
    m_tile,
    m_end,
    depth,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
):
    """[BM, BR], float32: the tile of rows by outputs of x @ W.T with the ablated W, or of x @ W if TRANSPOSED.

    row_offsets [BR], int64, are added to the pointer x; weight is read at m * m_stride + d * d_stride; words points
    at the variant's own, [rows of the weight, width].
    """
    m = m_tile * BM + tl.arange(0, BM)
    d = tl.arange(0, BD)
    m_inside = m < m_end
    x_at = x + row_offsets[None, :] + d[:, None].to(tl.int64) * x_depth_stride
    weight_at = weight + m[:, None].to(tl.int64) * m_stride + d[None, :].to(tl.int64) * d_stride
    if TRANSPOSED:
        word_column = m_tile * (BM // 32) + tl.arange(0, BM // 32)
        words_at = words + d[None, :].to(tl.int64) * width + word_column[:, None]
    else:
        word_column = tl.arange(0, BD // 32)
        words_at = words + m[:, None].to(tl.int64) * width + word_column[None, :]
    step = tl.full((), BD, tl.int64)
    sums = tl.zeros((BM, BR), dtype=tl.float32)
    for start in range(0, depth, BD):
        d_inside = start + d < depth
        inside = m_inside[:, None] & d_inside[None, :]
        tile = tl.load(weight_at, mask=inside, other=0.0)
        if TRANSPOSED:
            packed = tl.load(words_at, mask=(word_column < width)[:, None] & d_inside[None, :], other=0)
            words_at += step * width
        else:
            packed = tl.load(words_at, mask=m_inside[:, None] & (start // 32 + word_column < width)[None, :], other=0)
            words_at += BD // 32
        rows = tl.load(x_at, mask=d_inside[:, None] & row_inside[None, :], other=0.0)
        tile = ablate(tile, spread(packed, BM, BD, TRANSPOSED), inside, factor)
        sums = tl.dot(tile, rows, sums, input_precision=PRECISION)
        x_at += step * x_depth_stride
        weight_at += step * d_stride
    return sums


@triton.jit
def store_rows(y, y_row_offsets, row_inside, m_tile, m_end, sums, bias, BM: tl.constexpr):
    """Add the bias [m_end], unless None, and write the sums [BM, BR] to rows of y whose elements lie side by side."""
    m = m_tile * BM + tl.arange(0, BM)
    m_inside = m < m_end
    if bias is not None:
        sums += tl.load(bias + m, mask=m_inside, other=0.0).to(tl.float32)[:, None]
    at = y + y_row_offsets[None, :] + m[:, None]
    tl.store(at, sums.to(y.dtype.element_ty), mask=m_inside[:, None] & row_inside[None, :])
