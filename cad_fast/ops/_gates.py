"""What the gated operators share: checks of the gates, gates along one dimension in torch, and the native pass."""

from typing import Any

import torch
from torch import Tensor

from cad_fast.ops import _backend, _check, _linear, _native, reference


def check(gates: Any, x: Tensor) -> None:
    """Require gates of the dtype, the device and the variants of x, in two dimensions."""
    _check.tensor("gates", gates, (x.dtype,))
    if gates.dim() != 2 or gates.shape[0] != x.shape[0]:
        raise ValueError(f"gates must be [{x.shape[0]}, ...], one row per variant of x, got {_check.shape(gates)}")
    _check.same_device("gates", gates, "x", x)


def apply(x: Tensor, gates: Tensor, dim: int) -> Tensor:
    """X [V, R, ...] times its gates [V, C] along a dimension, exactly zero where a gate is 0.

    Not for x that someone else holds: it may be changed in place where nothing records gradients.
    """
    last = dim in (-1, x.dim() - 1)
    if torch.is_grad_enabled() or not _backend.untraced(x, gates):
        return reference.gated(x, gates, dim)
    dense = x.is_contiguous() and (last or dim == 2)
    if dense and _native.why_not_run("gated_conv2d", (x, gates)) is None:
        native_pass(x, x, gates, None, x.shape[1], last)
        return x
    factors = reference.along(gates, x, dim)
    return x.mul_(factors).masked_fill_(factors == 0, 0)


def native_pass(source: Tensor, target: Tensor, gates: Tensor, bias: Tensor | None, images: int, last: bool) -> None:
    """Target = source times gates, but for the bias in it; both [rows, channels, positions], channels last or not.

    The memory of both is dense and in the order that `last` says; they may be the same. ``images`` rows a variant.
    """
    channels = gates.shape[1]
    gates, bias = gates.float().contiguous(), _linear.contiguous(bias)
    _native.load().gated_conv2d(
        source.data_ptr(),
        target.data_ptr(),
        gates.data_ptr(),
        _linear.address(bias),
        len(gates),
        images,
        channels,
        source.numel() // max(1, len(gates) * images * channels),
        last,
        source.dtype == torch.bfloat16,
    )
