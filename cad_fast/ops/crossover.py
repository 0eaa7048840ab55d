"""The backends that the automatic choice tries on a device, in order; the one table of who goes first on GPUs."""

from typing import Any

from cad_fast.ops.backends import triton

CUDA_UP_TO_ROWS = {"masked_linear": 4, "edited_linear": 4}
"""Up to so many rows per variant the CUDA kernels go first, above it the Triton ones; operators not listed: Triton.
Estimates, measured on no device: with few rows the weight and its words are read once and memory is what counts, with
many the matrix instructions, which Triton's compiler schedules for each architecture."""


HOPPER = ("masked_linear", "edited_linear", "masked_conv2d", "edited_conv2d")


def order(op: str, args: tuple[Any, ...]) -> tuple[str, ...]:
    """The backends to try for an operator on these arguments, by name; some may not be there."""
    device = triton.device_of(args)
    if device is None or device.type != "cuda":
        return ("native", "reference")
    if op in HOPPER:
        return ("hopper", "triton", "cuda", "reference")
    few = op in CUDA_UP_TO_ROWS and _rows(op, args) <= CUDA_UP_TO_ROWS[op]
    return ("cuda", "triton", "reference") if few else ("triton", "cuda", "reference")


def _rows(op: str, args: tuple[Any, ...]) -> int:
    """Rows per variant, on average where they differ."""
    x = args[0]
    return x.shape[1] if x.dim() == 3 else x.shape[0] // max(1, len(args[2]) - 1)
