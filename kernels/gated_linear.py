"""gated_linear in Triton: rows are multiplied by their variant's gates in registers, on their way into the product.

Here rows are the left operand, which matrix instructions read from registers: gating them costs no trip to shared
memory, and the weight, the same for all variants, comes there as it is.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cad_fast.kernels import configs
from cad_fast.kernels.tiles import place, rows_of_variant, times


@triton.jit
def gated_linear_kernel(
    x,
    weight,
    gates,
    bias,
    y,
    rows,
    blocks_per_variant,
    blocks,
    m_end,
    depth,
    gate_count,
    gate_block,
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
    own_gates = gates + variant * gate_count
    m = m_tile * BM + tl.arange(0, BM)
    m_inside = m < m_end
    d = tl.arange(0, BD)
    x_at = x + row[:, None] * x_row_stride + d[None, :].to(tl.int64) * x_depth_stride
    weight_at = weight + d[:, None].to(tl.int64) * d_stride + m[None, :].to(tl.int64) * m_stride
    step = tl.full((), BD, tl.int64)
    sums = tl.zeros((BR, BM), dtype=tl.float32)
    for start in range(0, depth, BD):
        d_inside = start + d < depth
        tile = tl.load(x_at, mask=row_inside[:, None] & d_inside[None, :], other=0.0)
        columns = tl.load(weight_at, mask=d_inside[:, None] & m_inside[None, :], other=0.0)
        if not TRANSPOSED:
            gate = tl.load(own_gates + (start + d) // gate_block, mask=d_inside, other=0.0)
            tile = tl.where((gate == 0)[None, :], 0.0, times(tile, gate[None, :]))
        sums = tl.dot(tile, columns, sums, input_precision=PRECISION)
        x_at += step * x_depth_stride
        weight_at += step * d_stride
    if TRANSPOSED:
        gate = tl.load(own_gates + m // gate_block, mask=m_inside, other=0.0).to(tl.float32)
        sums = tl.where((gate == 0)[None, :], 0.0, sums * gate[None, :])
    if bias is not None:
        sums += tl.load(bias + m, mask=m_inside, other=0.0).to(tl.float32)[None, :]
    at = y + row[:, None] * m_end + m[None, :]
    tl.store(at, sums.to(y.dtype.element_ty), mask=row_inside[:, None] & m_inside[None, :])


def run(
    x: Tensor, weight: Tensor, gates: Tensor, bias: Tensor | None, transposed: bool, *, precision: str = "ieee"
) -> Tensor:
    """See `cad_fast.ops.gated_linear`; `precision` is how float32 is multiplied: ieee, tf32 or tf32x3."""
    variants, rows, depth = x.shape
    m_end = weight.shape[1 if transposed else 0]
    y = torch.empty((variants, rows, m_end), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    flat, gates = x.flatten(0, 1), gates.contiguous()
    bias = None if bias is None else bias.contiguous()
    config = configs.product("gated_linear", x, rows, precision)
    blocks_per_variant = triton.cdiv(rows, config.block_rows)
    blocks = variants * blocks_per_variant
    gated_linear_kernel[(triton.cdiv(m_end, config.block_m) * blocks,)](
        flat,
        weight,
        gates,
        bias,
        y,
        rows,
        blocks_per_variant,
        blocks,
        m_end,
        depth,
        gates.shape[1],
        weight.shape[1] // max(1, gates.shape[1]),
        *flat.stride(),
        *(weight.stride()[::-1] if transposed else weight.stride()),
        TRANSPOSED=transposed,
        PRECISION=configs.dot_precision(x, precision),
        **config.blocks,
        **config.options,
    )
    return y
