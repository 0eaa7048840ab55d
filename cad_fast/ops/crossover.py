"""The backends that the automatic choice tries on a device, in order; the one table of who goes first on each.

Measured on one NVIDIA H200 (docs/measurements/gpu.md); on other GPUs an estimate. What is before another in an order
but cannot run on the device or on such sizes says so, and the next one is tried. No choice depends on how many variants
share a call. So there is none for edited_linear on CPUs: the order of its sums would depend on who shares the call.
"""

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from cad_fast.ops.backends import native, triton

MANY_ROWS = 4096
"""From so many rows of a variant on, to write its weight out costs little beside the vendor's product."""
ROWS_OF_SHORT_SUMS, SHORT_SUM = 1024, 1024
"""The same from so many rows on where the sum has at most so many elements: a tile then ends soon after it began."""

FEW_ROWS, FEW_OUTPUTS = 16, 4096
"""Up to so many rows, and with fewer outputs, Hopper's tiles are too few for all multiprocessors."""


@dataclass(frozen=True)
class CpuTable:
    """From how many rows of a variant on the vendor's product goes first in masked_linear, by dtype.

    ``basis`` is the CPU it was measured on, or what an estimate rests on.
    """

    name: str
    measured: bool
    basis: str
    rows: Mapping[torch.dtype, int] = field(default_factory=dict)

    def report(self) -> dict[str, Any]:
        """What `backend_report` says of it."""
        return {**asdict(self), "rows": {str(dtype): rows for dtype, rows in self.rows.items()}}


VECTORS = CpuTable("vectors", True, "Intel Emerald Rapids without its tile unit; AMD Zen 4 by earlier runs")
TILES_OF_TORCH = CpuTable(
    "tiles of torch's alone",
    False,
    "figures of Granite Rapids from before products of bfloat16 ran as floats",
    {torch.bfloat16: 64},
)
TILES = CpuTable("tiles of both", False, "the native kernels multiply on the same unit")

GATED = ("gated_linear", "gated_conv2d")


def order(op: str, args: tuple[Any, ...]) -> tuple[str, ...]:
    """The backends to try for an operator on these arguments, by name; some may not be there."""
    device = triton.device_of(args)
    if device is None or device.type != "cuda":
        if op == "masked_linear" and args[0].shape[1] >= cpu_table().rows.get(args[0].dtype, args[0].shape[1] + 1):
            return ("vendor", "native", "reference")
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


def cpu_table() -> CpuTable:
    """The table of this CPU."""
    module = native.load()
    if not torch_has_tiles():
        return VECTORS
    return TILES if module is not None and module.capability() == "amx" else TILES_OF_TORCH


@functools.cache
def torch_has_tiles() -> bool:
    """Whether torch multiplies bfloat16 on a tile unit (AMX) here."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())
