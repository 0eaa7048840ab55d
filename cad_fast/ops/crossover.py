"""The backends that the automatic choice tries on a device, in order; the one table of who goes first on GPUs.

Measured on one NVIDIA H200 (docs/measurements/gpu.md); on other GPUs an estimate. What is before another in an order
but cannot run on the device or on such sizes says so, and the next one is tried. No choice depends on how many variants
share a call.
"""

from typing import Any

from cad_fast.ops.backends import triton

MANY_ROWS = 4096
"""From so many rows of a variant on, to write its weight out costs little beside the vendor's product."""
ROWS_OF_SHORT_SUMS, SHORT_SUM = 1024, 1024
"""The same from so many rows on where the sum has at most so many elements: a tile then ends soon after it began."""

FEW_ROWS, FEW_OUTPUTS = 16, 4096
"""Up to so many rows, and with fewer outputs, Hopper's tiles are too few for all multiprocessors."""

GATED = ("gated_linear", "gated_conv2d")


def order(op: str, args: tuple[Any, ...]) -> tuple[str, ...]:
    """The backends to try for an operator on these arguments, by name; some may not be there."""
    device = triton.device_of(args)
    if device is None or device.type != "cuda":
        return ("native", "reference")
    if op in GATED:
        return ("vendor", "triton", "reference")
    if op == "masked_linear":
        (rows, depth), outputs = args[0].shape[1:], args[1].shape[1 if args[5] else 0]
        if rows >= MANY_ROWS or (rows >= ROWS_OF_SHORT_SUMS and depth <= SHORT_SUM):
            return ("vendor", "hopper", "triton", "cuda", "reference")
        if rows <= FEW_ROWS and outputs < FEW_OUTPUTS:
            return ("triton", "hopper", "cuda", "vendor", "reference")
    return ("hopper", "triton", "cuda", "vendor", "reference")
