"""masked_linear in Triton: ablated weights are made in registers, a tile at a time, on their way into the product."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cad_fast.kernels import configs
from cad_fast.kernels.tiles import linear_product, place, rows_of_variant, store_rows


@triton.jit
def masked_linear_kernel(
    x,
    weight,
    words,
    bias,
    factors,
    y,
    rows,
    blocks_per_variant,
    blocks,
    m_end,
    depth,
    width,
    weight_rows,
    x_row_stride,
    x_depth_stride,
    m_stride,
    d_stride,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
    GROUP: tl.constexpr,
):
    m_tile, block = place(tl.cdiv(m_end, BM), blocks, GROUP)
    variant, row, row_inside = rows_of_variant(block, blocks_per_variant, rows, BR)
    row = variant * rows + row
    factor = None if factors is None else tl.load(factors + variant)
    sums = linear_product(
        x,
        x_depth_stride,
        row * x_row_stride,
        row_inside,
        weight,
        m_stride,
        d_stride,
        words + variant * weight_rows * width,
        width,
        factor,
        m_tile,
        m_end,
        depth,
        TRANSPOSED,
        PRECISION,
        BM,
        BR,
        BD,
    )
    store_rows(y, row * m_end, row_inside, m_tile, m_end, sums, bias, BM)


def run(
    x: Tensor,
    weight: Tensor,
    words: Tensor,
    bias: Tensor | None,
    factors: Tensor | None,
    transposed: bool,
    *,
    precision: str = "ieee",
) -> Tensor:
    """See `cad_fast.ops.masked_linear`; `precision` is how float32 is multiplied: ieee, tf32 or tf32x3."""
    variants, rows, depth = x.shape
    m_end = weight.shape[1 if transposed else 0]
    y = torch.empty((variants, rows, m_end), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    flat, words = x.flatten(0, 1), words.contiguous()
    bias = None if bias is None else bias.contiguous()
    factors = None if factors is None else factors.contiguous()
    config = configs.product("masked_linear", x, rows, precision)
    blocks_per_variant = triton.cdiv(rows, config.block_rows)
    blocks = variants * blocks_per_variant
    masked_linear_kernel[(triton.cdiv(m_end, config.block_m) * blocks,)](
        flat,
        weight,
        words,
        bias,
        factors,
        y,
        rows,
        blocks_per_variant,
        blocks,
        m_end,
        depth,
        words.shape[2],
        weight.shape[0],
        *flat.stride(),
        *(weight.stride()[::-1] if transposed else weight.stride()),
        TRANSPOSED=transposed,
        PRECISION=configs.dot_precision(x, precision),
        **config.blocks,
        **config.options,
    )
    return y
