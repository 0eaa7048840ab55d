"""masked_conv2d in Triton: a product with patches that are never written out, the weight ablated on its way."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from cad_fast.kernels import configs
from cad_fast.kernels.channels_last import arrange, channels_last_product
from cad_fast.kernels.patches import (
    convolution_product,
    geometry,
    images,
    place_outputs,
    positions_of,
    store_images,
)
from cad_fast.kernels.tiles import rows_of_variant


@triton.jit
def masked_conv2d_kernel(
    x,
    weight,
    words,
    bias,
    factors,
    out,
    images_per_variant,
    blocks_per_variant,
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
    positions = images_per_variant * out.height * out.width
    variant, number, inside = rows_of_variant(block, blocks_per_variant, positions, BR)
    at = positions_of(out, variant * images_per_variant, number, inside)
    own_words = words + variant * sizes.groups * sizes.filters * words_width
    factor = None if factors is None else tl.load(factors + variant)
    if WINDOW.last:
        sums = channels_last_product(
            x, at, weight, outputs, sizes, own_words, words_width, factor, WINDOW, PRECISION, BM, BR, BD
        )
    else:
        sums = convolution_product(
            x, at, weight, outputs, sizes, own_words, words_width, factor, None, WINDOW, PRECISION, BM, BR, BD
        )
    store_images(out, at, outputs, sizes, sums, bias)


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
    flat, written = x.flatten(0, 1), out.flatten(0, 1)
    sizes, window = geometry(flat, written, weight, stride, padding, dilation, groups, input_size)
    positions = x.shape[1] * out.shape[3] * out.shape[4]
    config, window, flat, weight, words = arrange(
        "masked_conv2d", flat, weight, words, positions, precision, sizes, window
    )
    blocks_per_variant = triton.cdiv(positions, config.block_rows)
    blocks = x.shape[0] * blocks_per_variant
    masked_conv2d_kernel[(triton.cdiv(sizes.m_end, config.block_m) * groups * blocks,)](
        images(flat),
        weight,
        words,
        None if bias is None else bias.contiguous(),
        None if factors is None else factors.contiguous(),
        images(written),
        x.shape[1],
        blocks_per_variant,
        blocks,
        sizes,
        words.shape[2],
        WINDOW=window,
        PRECISION=configs.dot_precision(x, precision),
        **config.blocks,
        **config.options,
    )
    return out
