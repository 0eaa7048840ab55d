"""edited_linear in Triton: the edited elements are removed as in masked_linear, those with a factor are added after."""

import itertools

import torch
import triton
import triton.language as tl
from torch import Tensor

from cad_fast.kernels import configs, entries
from cad_fast.kernels.entries import weights_of_entries
from cad_fast.kernels.tiles import linear_product, place, store_rows
from cad_fast.remembered import remembered

BLOCK_ENTRIES = tl.constexpr(16)


@triton.jit
def edited_linear_kernel(
    x,
    weight,
    words,
    bias,
    y,
    row_blocks,
    bounds,
    entry_m,
    entry_d,
    entry_factors,
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
    tiles_m = tl.cdiv(m_end, BM)
    m_tile, block = place(tiles_m, blocks, GROUP)
    group = tl.load(row_blocks + 3 * block).to(tl.int64)
    row = tl.load(row_blocks + 3 * block + 1) + tl.arange(0, BR)
    row_inside = row < tl.load(row_blocks + 3 * block + 2)
    row = row.to(tl.int64)
    sums = linear_product(
        x,
        x_depth_stride,
        row * x_row_stride,
        row_inside,
        weight,
        m_stride,
        d_stride,
        words + group * weight_rows * width,
        width,
        None,
        m_tile,
        m_end,
        depth,
        TRANSPOSED,
        PRECISION,
        BM,
        BR,
        BD,
    )
    m = m_tile * BM + tl.arange(0, BM)
    own = bounds + 2 * (group * tiles_m + m_tile)
    end = tl.load(own + 1)
    for start in range(tl.load(own), end, BLOCK_ENTRIES):
        entry = start + tl.arange(0, BLOCK_ENTRIES)
        inside = entry < end
        at_m = tl.load(entry_m + entry, mask=inside, other=0)
        at_d = tl.load(entry_d + entry, mask=inside, other=0).to(tl.int64)
        weight_at = weight + at_m.to(tl.int64) * m_stride + at_d * d_stride
        tile = weights_of_entries(weight_at, entry_factors, entry, inside, m, at_m)
        x_at = x + (row * x_row_stride)[None, :] + at_d[:, None] * x_depth_stride
        rows = tl.load(x_at, mask=inside[:, None] & row_inside[None, :], other=0.0)
        sums = tl.dot(tile, rows, sums, input_precision=PRECISION)
    store_rows(y, row * m_end, row_inside, m_tile, m_end, sums, bias, BM)


def run(
    x: Tensor,
    weight: Tensor,
    rows: Tensor,
    offsets: Tensor,
    indices: Tensor,
    factors: Tensor,
    bias: Tensor | None,
    transposed: bool,
    *,
    precision: str = "ieee",
) -> Tensor:
    """See `cad_fast.ops.edited_linear`; `precision` is how float32 is multiplied: ieee, tf32 or tf32x3."""
    n, k = weight.shape
    m_end, depth = (k, n) if transposed else (n, k)
    y = torch.empty((x.shape[0], m_end), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    bounds = rows.tolist()
    most = max(end - begin for begin, end in itertools.pairwise(bounds))
    config = configs.product("edited_linear", x, most, precision)
    bias = None if bias is None else bias.contiguous()
    tiles = triton.cdiv(m_end, config.block_m)
    prepared = remembered(
        "edited_linear in Triton",
        [indices, factors],
        (n, k, transposed, config.block_m, *offsets.tolist()),
        lambda: _prepare((n, k), offsets, indices, factors, transposed, config.block_m),
    )
    row_blocks = entries.row_blocks(bounds, config.block_rows, x.device)
    edited_linear_kernel[(tiles * len(row_blocks),)](
        x,
        weight,
        prepared.words,
        bias,
        y,
        row_blocks,
        prepared.bounds,
        prepared.m,
        prepared.d,
        prepared.factors,
        len(row_blocks),
        m_end,
        depth,
        prepared.words.shape[2],
        n,
        *x.stride(),
        *(weight.stride()[::-1] if transposed else weight.stride()),
        TRANSPOSED=transposed,
        PRECISION=configs.dot_precision(x, precision),
        **config.blocks,
        **config.options,
    )
    return y


def _prepare(
    shape: tuple[int, int], offsets: Tensor, indices: Tensor, factors: Tensor, transposed: bool, block_m: int
) -> entries.Entries:
    row, column = indices // max(shape[1], 1), indices % max(shape[1], 1)
    (m, d), sizes = ((column, row), shape[::-1]) if transposed else ((row, column), shape)
    edges = entries.tile_edges(triton.cdiv(sizes[0], block_m), block_m, sizes[0], indices.device)
    return entries.prepare(shape, offsets, indices, factors, not transposed, m, d, sizes, edges)
