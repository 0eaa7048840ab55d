"""Channels times gates in Triton, in one pass over memory: beside the vendor's products."""

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048
OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}


@triton.jit
def gate_channels_kernel(
    source, gates, bias, target, count, per_variant, channels, per_channel, block_of_gate, B: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    inside = at < count
    channel = at // per_channel % channels
    gate = tl.load(
        gates + at // per_variant * (channels // block_of_gate) + channel // block_of_gate, mask=inside, other=0
    )
    # What a gate of 0 meets is not read: it may be infinite.
    value = tl.load(source + at, mask=inside & (gate != 0), other=0.0).to(tl.float32) * gate.to(tl.float32)
    if bias is not None:
        value += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    tl.store(target + at, value.to(target.dtype.element_ty), mask=inside)


def run(source: Tensor, gates: Tensor, bias: Tensor | None, target: Tensor, channels: int, per_channel: int) -> Tensor:
    """Write source times gates, plus the bias, to target.

    Args:
        source: [V, ...], contiguous, in which an entry of a channel is followed by `per_channel` - 1 of the same.
        gates: [V, G], dtype of `source`: each for channels / G neighbouring channels.
        bias: [channels], dtype of `source`, or None.
        target: like `source`, or itself.
        channels: how many there are.
        per_channel: how many entries of a channel lie side by side.

    Returns:
        target.
    """
    count, variants = source.numel(), source.shape[0]
    if count == 0:
        return target
    per_variant = count // variants
    gate_channels_kernel[(triton.cdiv(count, BLOCK),)](
        source,
        gates.contiguous(),
        bias,
        target,
        count,
        per_variant,
        channels,
        per_channel,
        channels // gates.shape[1],
        B=BLOCK,
        **OPTIONS,
    )
    return target
