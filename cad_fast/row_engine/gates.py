"""Gates: a component's weights multiplied by a number, as a multiplication of activations, by operators or by torch.

Neurons and heads are gated at their linear's input, filters at their convolution's output less the bias. That is the
same function as scaling the weights, it costs one pass over the activations, and the gradient of a gate needs no
gradient of the weights. Rows are variant-major: V groups of equally many.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..ops import can_run, get_backend
from ..ops.registry import OPS

LEAST = {"gated_linear": 1 << 16, "gated_conv2d": 1 << 17}
"""Gated elements from which the operators' call, some 20 microseconds longer, costs less than torch's passes."""

LEAST_UNLESS_REMOVED = 1 << 20
"""The same for gated_linear in float32 where no gate is 0, so that torch needs a single multiplication, and where gates
want gradients, for which torch's dispatcher is passed twice. In bfloat16 the operator gains nothing there."""


def fuses(op: str, x: Tensor, weight: Tensor, gates: Tensor, elements: int, removes: bool) -> bool:
    """Whether an operator rather than torch shall gate so many elements, all rows together; some gates 0 if `removes`.

    A backend that was chosen does, if it has the operator. By itself it is done where it was measured to be no slower
    (on CPUs, and for linears of 16 bits on an H200). Convolutions leave that to torch wherever
    gradients are recorded, as torch keeps the output before the gates, and on a GPU, where theirs are the vendor's.
    """
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        return False
    if x.dtype != weight.dtype or x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    chosen = get_backend()
    if chosen != "auto":
        return chosen in OPS[op].implementations
    if x.device.type == "cuda":
        return op == "gated_linear" and can_run(op, "triton", x)
    records = torch.is_grad_enabled() and any(t.requires_grad for t in (x, weight, gates))
    if records and (op == "gated_conv2d" or not gates.requires_grad):
        return False
    least = LEAST[op]
    if op == "gated_linear" and (records or not removes):
        if x.dtype != torch.float32:
            return False
        least = LEAST_UNLESS_REMOVED
    return elements >= least and can_run(op, "native", x)


def scale_columns(x: Tensor, gates: Tensor) -> Tensor:
    """A linear's input [V * B, ..., K], each variant's columns times its gates [V, K]."""
    return _on_groups(torch.mul, x, gates, channel=-1)


def keep_columns(x: Tensor, keep: Tensor) -> Tensor:
    """A linear's input [V * B, ..., K], exactly zero in the columns that ``keep`` bool [V, K] drops."""
    return _on_groups(lambda part, kept: torch.where(kept, part, part.new_zeros(())), x, keep, channel=-1)


def scale_filters(output: Tensor, gates: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution's output [V * B, N, H, W], less the bias [N] multiplied by each variant's gates [V, N].

    A gate of 1 leaves the output bit for bit.
    """
    scaled = _on_groups(torch.mul, output, gates, channel=1)
    return scaled if bias is None else _on_groups(torch.add, scaled, bias * (1 - gates), channel=1)


def keep_filters(output: Tensor, keep: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution's output [V * B, N, H, W], exactly the bias in the filters that ``keep`` bool [V, N] drops."""
    bare = output.new_zeros(()) if bias is None else bias[:, None, None]
    return _on_groups(lambda part, kept: torch.where(kept, part, bare), output, keep, channel=1)


def _on_groups(function: Callable[[Tensor, Tensor], Tensor], rows: Tensor, values: Tensor, channel: int) -> Tensor:
    """``function(rows, values)`` with values [V, C] for each of the V groups of rows and each channel."""
    variants = len(values)
    shape = [1] * (rows.dim() + 1)
    shape[0] = variants
    shape[channel + 1 if channel >= 0 else channel] = values.shape[1]
    grouped = rows.unflatten(0, (variants, len(rows) // variants))
    return function(grouped, values.reshape(shape)).flatten(0, 1)
