"""The weight of each variant, written out in Triton: what is multiplied where the vendor's product is the fastest."""

import triton
import triton.language as tl
from torch import Tensor

from cad_fast.kernels.tiles import ablate, spread

BLOCK_ROWS, BLOCK_COLUMNS = 8, 256
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


@triton.jit
def ablated_weights_kernel(
    weight, words, factors, out, rows, columns, width, row_stride, column_stride, BN: tl.constexpr, BK: tl.constexpr
):
    variant = tl.program_id(2).to(tl.int64)
    row = tl.program_id(1) * BN + tl.arange(0, BN)
    column = tl.program_id(0) * BK + tl.arange(0, BK)
    word = tl.program_id(0) * (BK // 32) + tl.arange(0, BK // 32)
    row_inside = (row < rows)[:, None]
    row = row.to(tl.int64)[:, None]
    inside = row_inside & (column < columns)[None, :]
    tile = tl.load(weight + row * row_stride + column.to(tl.int64)[None, :] * column_stride, mask=inside, other=0.0)
    packed_at = words + (variant * rows + row) * width + word[None, :]
    packed = tl.load(packed_at, mask=row_inside & (word < width)[None, :], other=0)
    factor = None if factors is None else tl.load(factors + variant)
    wide, places = spread(packed, BN, BK, False)
    tile = ablate(tile, wide, places, inside, factor)
    tl.store(out + (variant * rows + row) * columns + column[None, :], tile, mask=inside)


def run(weight: Tensor, words: Tensor, factors: Tensor | None, out: Tensor) -> Tensor:
    """Write the weights of variants.

    Args:
        weight: [n, k], any strides.
        words: [V, n, ceil(k / 32)], int32, contiguous: bits of the elements to be multiplied by their variant's factor.
        factors: [V], float32, or None for 0.
        out: [V, n, k], contiguous, dtype of `weight`.

    Returns:
        out.
    """
    variants, rows, columns = out.shape
    grid = (triton.cdiv(columns, BLOCK_COLUMNS), triton.cdiv(rows, BLOCK_ROWS), variants)
    ablated_weights_kernel[grid](
        weight,
        words,
        factors,
        out,
        rows,
        columns,
        words.shape[2],
        *weight.stride(),
        BN=BLOCK_ROWS,
        BK=BLOCK_COLUMNS,
        **OPTIONS,
    )
    return out
