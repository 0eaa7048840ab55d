"""Sparse edits as the Triton kernels take them: what is edited as bits, what is left of it as entries.

A kernel removes every edited element exactly, by its bit, and adds element * factor * input for the entries whose
factor is not 0. To add (factor - 1) * element * input to the plain product would cost no bits, but an infinite element
would leave NaN behind where it is removed, and a large one its rounding error.
"""

import itertools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from cad_fast.kernels.tiles import times
from cad_fast.remembered import remembered


class Entries(NamedTuple):
    """Every group's edit: bits for all of its elements, and its elements with factors that are not 0, in order of m.

    words: [groups, rows of the weight, width], int32; m, d: [e + 1], int32, where an entry is in the product;
    factors: [e + 1], float32; bounds: [groups, tiles, 2], int64: the entries of each group within each tile of m.
    """

    words: Tensor
    m: Tensor
    d: Tensor
    factors: Tensor
    bounds: Tensor


def prepare(
    shape: tuple[int, int],
    offsets: Tensor,
    indices: Tensor,
    factors: Tensor,
    ascending: bool,
    m: Tensor,
    d: Tensor,
    sizes: tuple[int, int],
    edges: Tensor,
) -> Entries:
    """Entries of a weight of this shape (rows, columns), on the device of `indices` and without waiting for it.

    m and d, [e], int64, say where each entry is in a product of these sizes (all of m, depth). Tile t is the m between
    edges[t], [tiles, 2], int64. `ascending`: the entries of a group are in the order of (m, d) as they are.
    """
    device, (rows, columns), groups, count = indices.device, shape, len(offsets) - 1, len(indices)
    width = (columns + 31) // 32
    numbers = torch.arange(groups, device=device)
    group = torch.repeat_interleave(numbers, offsets.diff().to(device), output_size=count)
    row, column = indices // columns, indices % columns
    words = torch.zeros(groups * rows * width, dtype=torch.int32, device=device)
    bits = torch.ones((), dtype=torch.int32, device=device) << (column % 32).to(torch.int32)
    words.index_add_(0, (group * rows + row) * width + column // 32, bits)  # each bit once: the sum is their union
    keys = group * (sizes[0] * sizes[1]) + m * sizes[1] + d
    if not ascending:
        keys, order = torch.sort(keys)
        m, d, factors = m[order], d[order], factors[order]
    kept = factors != 0
    before = torch.nn.functional.pad(kept.cumsum(0), (1, 0))
    target = torch.where(kept, before[:-1], count)  # what is not kept falls behind the end
    at = numbers[:, None, None] * (sizes[0] * sizes[1]) + edges * sizes[1]
    return Entries(
        words.view(groups, rows, width),
        *(_scattered(values, target) for values in (m.to(torch.int32), d.to(torch.int32), factors)),
        before[torch.searchsorted(keys, at)],
    )


def _scattered(values: Tensor, target: Tensor) -> Tensor:
    return torch.zeros(len(values) + 1, dtype=values.dtype, device=values.device).scatter_(0, target, values)


def row_blocks(rows: list[int], block: int, device: torch.device) -> Tensor:
    """[blocks, 3], int32: the group, first row and end of the group of each block; rows [groups + 1].

    Made once for the same rows, whatever the edit.
    """
    return remembered("row blocks", [], (block, *rows), lambda: _row_blocks(rows, block, device), device)


def _row_blocks(rows: list[int], block: int, device: torch.device) -> Tensor:
    parts = [
        (group, first, end)
        for group, (begin, end) in enumerate(itertools.pairwise(rows))
        for first in range(begin, end, block)
    ]
    return torch.tensor(parts, dtype=torch.int32, device=device).view(-1, 3)


def tile_edges(tiles: int, block: int, end: int, device: torch.device) -> Tensor:
    """[tiles, 2], int64: where each tile of `block` numbers begins and ends, the last one at `end`."""
    starts = torch.arange(tiles, device=device) * block
    return torch.stack([starts, (starts + block).clamp(max=end)], -1)


@triton.jit
def weights_of_entries(weight_at, factors, entry, inside, m, entry_m):
    """[BM, BE]: each entry's element times its factor in its row of m, and zeros."""
    element = tl.load(weight_at, mask=inside, other=0.0)
    element = times(element, tl.load(factors + entry, mask=inside, other=0.0))
    return tl.where((m[:, None] == entry_m[None, :]) & inside[None, :], element[None, :], 0.0)
