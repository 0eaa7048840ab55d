"""edited_conv2d in Triton: the edited elements are removed as in masked_conv2d, those with a factor are added after."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cad_fast.kernels import configs, entries
from cad_fast.kernels.entries import weights_of_entries
from cad_fast.kernels.patches import (
    convolution_product,
    element_at,
    geometry,
    images,
    load_patches,
    place_outputs,
    positions_of,
    store_images,
)
from cad_fast.remembered import remembered

BLOCK_ENTRIES = tl.constexpr(16)


@triton.jit
def edited_conv2d_kernel(
    x,
    weight,
    words,
    bias,
    out,
    position_blocks,
    bounds,
    entry_m,
    entry_d,
    entry_factors,
    blocks,
    sizes,
    words_width,
    WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
    GROUP: tl.constexpr,
):
    outputs, block = place_outputs(sizes, blocks, BM, GROUP)
    edit = tl.load(position_blocks + 3 * block).to(tl.int64)
    number = tl.load(position_blocks + 3 * block + 1) + tl.arange(0, BR)
    at = positions_of(out, 0, number, number < tl.load(position_blocks + 3 * block + 2))
    own_words = words + edit * sizes.groups * sizes.filters * words_width
    sums = convolution_product(
        x, at, weight, outputs, sizes, own_words, words_width, None, None, WINDOW, PRECISION, BM, BR, BD
    )
    own = bounds + 2 * (edit * tl.cdiv(sizes.m_end, BM) * sizes.groups + outputs.tile)
    end = tl.load(own + 1)
    for start in range(tl.load(own), end, BLOCK_ENTRIES):
        entry = start + tl.arange(0, BLOCK_ENTRIES)
        inside = entry < end
        m = tl.load(entry_m + entry, mask=inside, other=0) - outputs.group * sizes.m_end
        d = tl.load(entry_d + entry, mask=inside, other=0)
        weight_at = element_at(weight, m, d, outputs.group, sizes, WINDOW)
        tile = weights_of_entries(weight_at, entry_factors, entry, inside, outputs.m, m)
        patches = load_patches(x, at, d, inside, outputs.group, sizes, WINDOW)
        sums = tl.dot(tile, patches, sums, input_precision=PRECISION)
    store_images(out, at, outputs, sizes, sums, bias)


def run(
    x: Tensor,
    weight: Tensor,
    rows: Tensor,
    offsets: Tensor,
    indices: Tensor,
    factors: Tensor,
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
    """See `cad_fast.ops.edited_conv2d`; the result is written to `out`, of its shape and any strides.

    `precision` is how float32 is multiplied: ieee, tf32 or tf32x3.
    """
    if out.numel() == 0:
        return out
    sizes, window = geometry(x, out, weight, stride, padding, dilation, groups, input_size)
    config = configs.product("edited_conv2d", x, 1, precision)
    weight = weight.contiguous()
    tiles = triton.cdiv(sizes.m_end, config.block_m)
    transposed = input_size is not None
    prepared = remembered(
        "edited_conv2d in Triton",
        [indices, factors],
        (weight.shape, groups, transposed, config.block_m, *offsets.tolist()),
        lambda: _prepare(weight, offsets, indices, factors, groups, transposed, sizes, config.block_m),
    )
    area = out.shape[2] * out.shape[3]
    position_blocks = entries.row_blocks([row * area for row in rows.tolist()], config.block_rows, x.device)
    edited_conv2d_kernel[(tiles * groups * len(position_blocks),)](
        images(x),
        weight,
        prepared.words,
        None if bias is None else bias.contiguous(),
        images(out),
        position_blocks,
        prepared.bounds,
        prepared.m,
        prepared.d,
        prepared.factors,
        len(position_blocks),
        sizes,
        prepared.words.shape[2],
        WINDOW=window,
        PRECISION=configs.dot_precision(x, precision),
        **config.blocks,
        **config.options,
    )
    return out


def _prepare(
    weight: Tensor,
    offsets: Tensor,
    indices: Tensor,
    factors: Tensor,
    groups: int,
    transposed: bool,
    sizes: Any,
    block_m: int,
) -> entries.Entries:
    edges = entries.tile_edges(triton.cdiv(sizes.m_end, block_m), block_m, sizes.m_end, indices.device)
    of_groups = torch.arange(groups, device=indices.device)[:, None, None] * sizes.m_end
    return entries.prepare(
        (weight.shape[0], weight[0].numel()),
        offsets,
        indices,
        factors,
        not transposed,
        *_places(weight, indices, groups, transposed),
        (groups * sizes.m_end, sizes.depth),
        (of_groups + edges).flatten(0, 1),
    )


def _places(weight: Tensor, indices: Tensor, groups: int, transposed: bool) -> tuple[Tensor, Tensor]:
    """Where elements of the flattened weight are in the product: m, through all groups of channels, and d."""
    filters, channels, *kernel = weight.shape
    area = kernel[0] * kernel[1]
    filter, inside_filter = indices // (channels * area), indices % (channels * area)
    if not transposed:
        return filter, inside_filter
    group, own = filter // (filters // groups), filter % (filters // groups)
    return group * channels + inside_filter // area, own * area + inside_filter % area
