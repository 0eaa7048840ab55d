"""gated_conv2d in Triton: the sums are multiplied by their variant's gates before the bias comes to them.

Transposed, the sum runs over filters: their weights are multiplied by the gates on their way into the product, and what
they would meet is not even read where a gate is 0.
"""

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
def gated_conv2d_kernel(
    x,
    weight,
    gates,
    bias,
    out,
    images_per_variant,
    blocks_per_variant,
    blocks,
    sizes,
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
    own_gates = gates + variant * sizes.groups * sizes.filters + outputs.group * sizes.filters
    if WINDOW.last:
        sums = channels_last_product(x, at, weight, outputs, sizes, None, None, None, WINDOW, PRECISION, BM, BR, BD)
    else:
        inner_gates = own_gates if WINDOW.transposed else None
        sums = convolution_product(
            x, at, weight, outputs, sizes, None, None, None, inner_gates, WINDOW, PRECISION, BM, BR, BD
        )
    if not WINDOW.transposed:
        gate = tl.load(own_gates + outputs.m, mask=outputs.inside, other=0.0).to(tl.float32)
        sums = tl.where((gate == 0)[:, None], 0.0, sums * gate[:, None])
    store_images(out, at, outputs, sizes, sums, bias)


def run(
    x: Tensor,
    weight: Tensor,
    gates: Tensor,
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
    """See `cad_fast.ops.gated_conv2d`; the result is written to `out`, of its shape and any strides.

    `precision` is how float32 is multiplied: ieee, tf32 or tf32x3.
    """
    if out.numel() == 0:
        return out
    flat, written = x.flatten(0, 1), out.flatten(0, 1)
    sizes, window = geometry(flat, written, weight, stride, padding, dilation, groups, input_size)
    positions = x.shape[1] * out.shape[3] * out.shape[4]
    if window.transposed:  # gates within the sum forbid to read single channels
        config, weight = configs.product("gated_conv2d", x, positions, precision), weight.contiguous()
    else:
        config, window, flat, weight, _ = arrange(
            "gated_conv2d", flat, weight, None, positions, precision, sizes, window
        )
    blocks_per_variant = triton.cdiv(positions, config.block_rows)
    blocks = x.shape[0] * blocks_per_variant
    gated_conv2d_kernel[(triton.cdiv(sizes.m_end, config.block_m) * groups * blocks,)](
        images(flat),
        weight,
        gates.contiguous(),
        None if bias is None else bias.contiguous(),
        images(written),
        x.shape[1],
        blocks_per_variant,
        blocks,
        sizes,
        WINDOW=window,
        PRECISION=configs.dot_precision(x, precision),
        **config.blocks,
        **config.options,
    )
    return out
