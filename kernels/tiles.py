"""What the kernels with ablated weights share: the order of programs, bits in registers, and the product over a depth.

Products are weight by rows, [BM, BD] @ [BD, BR]: the ablated weight can then be the operand that matrix instructions
read from registers, and few rows cost little, as only the side of the weight has a least size of 64.
"""

import triton
import triton.language as tl

try:
    from triton.language import target_info
except ImportError:  # triton 3.3, in which kernels cannot ask what they are compiled for
    target_info = None


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
    """Words [BM, BD / 32], or [BM / 32, BD] if ALONG_M: the word of each element, and the place of its bit in there.

    [BM, BD], and places that can be broadcast to it.
    """
    if ALONG_M:
        wide = tl.reshape(tl.broadcast_to(words[:, None, :], (BM // 32, 32, BD)), (BM, BD))
        places = (tl.arange(0, BM) % 32)[:, None]
    else:
        wide = tl.reshape(tl.broadcast_to(words[:, :, None], (BM, BD // 32, 32)), (BM, BD))
        places = (tl.arange(0, BD) % 32)[None, :]
    return wide, places


@triton.jit
def times(tile, factor):
    """Elements times factors, both rounded to the elements' dtype."""
    # Through float32, in which the product of two shorter floats is exact: it is rounded once.
    return (tile.to(tl.float32) * factor.to(tile.dtype).to(tl.float32)).to(tile.dtype)


# The interpreter cannot run PTX. Where it is in force, triton.jit makes something else than a JITFunction of `times`.
HAS_PTX = tl.constexpr(target_info is not None and isinstance(times, triton.JITFunction))

# Two elements of 16 bits share a register. The bit of each is shifted to the top of its word; prmt then repeats it
# through that element's half of a mask. The compiler would compare and select the elements one by one, and take the
# pairs apart and together again for that.
DROP_PAIRS = tl.constexpr("""{
.reg .b32 low, high, mask;
shl.b32 low, $2, $4;
shl.b32 high, $3, $5;
prmt.b32 mask, low, high, 0xFFBB;
not.b32 mask, mask;
and.b32 $0, $1, mask;
}""")
CHOOSE_PAIRS = tl.constexpr("""{
.reg .b32 low, high, mask;
shl.b32 low, $3, $5;
shl.b32 high, $4, $6;
prmt.b32 mask, low, high, 0xFFBB;
lop3.b32 $0, mask, $2, $1, 0xCA;
}""")


@triton.jit
def ablate_pairs(tile, words, places, inside, scaled):
    """As `ablate_elements`, by PTX, for elements of 16 bits."""
    left = tl.broadcast_to(31 - places, tile.shape)
    if scaled is not None:
        scaled = tl.where(inside, scaled, 0.0)
        result = tl.inline_asm_elementwise(
            CHOOSE_PAIRS, "=r,r,r,r,r,r,r", [tile, scaled, words, left], dtype=tile.dtype, is_pure=True, pack=2
        )
    else:
        result = tl.inline_asm_elementwise(
            DROP_PAIRS, "=r,r,r,r,r,r", [tile, words, left], dtype=tile.dtype, is_pure=True, pack=2
        )
    return result


@triton.jit
def ablate_elements(tile, words, places, inside, scaled):
    """The tile, zero outside, with the elements whose bit is set replaced by those of `scaled`; None stands for zeros.

    Bits outside mean nothing, and what is scaled may be NaN there.
    """
    bits = (words >> places) & 1
    if scaled is not None:
        result = tl.where((bits != 0) & inside, scaled, tile)
    else:
        result = tl.where(bits != 0, 0.0, tile)
    return result


@triton.jit
def ablate(tile, words, places, inside, factor, PAIRS: tl.constexpr = True):
    """The tile with the elements whose bit is set multiplied by the factor; exactly zero where that rounds to zero.

    None stands for a factor of 0. Words and places are as `spread` gives them; `inside` is what there is of the tile.
    Without PAIRS elements are ablated one by one on every device.
    """
    scaled = None
    if factor is not None:
        scaled = tl.where(factor.to(tile.dtype).to(tl.float32) == 0, 0.0, times(tile, factor))
    # AMD has no PTX, and elements of 32 bits do not share registers. The interpreter takes their way; a test on a GPU
    # holds the two ways against each other.
    result = ablate_elements(tile, words, places, inside, scaled)
    if PAIRS and HAS_PTX:
        if target_info.is_cuda() and tile.dtype.primitive_bitwidth == 16:
            result = ablate_pairs(tile, words, places, inside, scaled)  # the compiler drops the other result
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
        wide, places = spread(packed, BM, BD, TRANSPOSED)
        tile = ablate(tile, wide, places, inside, factor)
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
