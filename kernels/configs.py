"""Launch configurations of the Triton kernels, by architecture and arithmetic; apart from the kernels themselves.

Entries with `measured` were the best of a sweep on an H200 (sm_90) with bfloat16, 16 variants or edits, and layers of
Stable Diffusion, SDXL and FLUX, among those that may serve: seven ways to cut up masked_linear for 1 and 16 rows,
eleven for 64, 256, 1024 and 4096; three and six for edited_linear, with elements that are removed. Of masked_linear the
larger ones were timed again with the bits dropped on pairs (`tiles.ablate`).

All others are estimates: chosen by shared memory, registers and the shapes of the matrix instructions, compiled ahead
of time for each architecture, but never timed.
"""

from typing import NamedTuple

import torch

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")
ARITHMETIC = ("ieee", "tf32", "tf32x3", "half")
"""float32 by fused multiply-add, by TF32 matrix instructions, by three of them; float16 and bfloat16."""


class Config(NamedTuple):
    """How a product is cut up: outputs of the weight by rows (or positions) by steps of the sum, and what runs it."""

    block_m: int
    block_rows: int
    block_depth: int
    num_warps: int
    num_stages: int
    group: int = 8
    """How many neighbouring tiles of the weight go through all variants before the next ones: they stay in L2."""
    measured: bool = False

    @property
    def blocks(self) -> dict[str, int]:
        """The sizes as the kernels name them."""
        return {"BM": self.block_m, "BR": self.block_rows, "BD": self.block_depth, "GROUP": self.group}

    @property
    def options(self) -> dict[str, int | bool]:
        """What Triton is told beside the arguments."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}


# block_m is a multiple of 64, the least that wgmma and tcgen05 take; a variant with few rows fills block_rows, which
# may be as low as 16. sm_80 also serves sm_86, sm_89 and sm_120, so it stays within 99 KiB of shared memory.
LINEAR: dict[tuple[str, str], tuple[Config, ...]] = {
    ("sm_80", "ieee"): (Config(64, 16, 32, 4, 2), Config(64, 32, 32, 4, 2)),
    ("sm_90", "ieee"): (Config(64, 16, 32, 4, 2), Config(64, 64, 32, 8, 2)),
    ("sm_100", "ieee"): (Config(64, 16, 32, 4, 2), Config(64, 64, 32, 8, 2)),
    ("gfx942", "ieee"): (Config(64, 16, 32, 4, 2), Config(64, 64, 32, 4, 2)),
    ("sm_80", "tf32"): (Config(64, 16, 32, 4, 3), Config(64, 64, 32, 4, 3)),
    ("sm_90", "tf32"): (Config(64, 16, 32, 4, 4), Config(64, 128, 32, 4, 4)),
    ("sm_100", "tf32"): (Config(64, 16, 32, 4, 4), Config(128, 128, 32, 4, 3)),
    ("sm_80", "tf32x3"): (Config(64, 16, 32, 4, 3), Config(64, 64, 32, 8, 3)),
    ("sm_90", "tf32x3"): (Config(64, 16, 32, 4, 3), Config(64, 64, 32, 8, 3)),
    ("sm_100", "tf32x3"): (Config(64, 16, 32, 4, 3), Config(64, 64, 32, 8, 3)),
    ("sm_80", "half"): (Config(64, 16, 64, 4, 4), Config(64, 64, 64, 4, 3), Config(128, 128, 32, 8, 3)),
    ("sm_90", "half"): (
        Config(64, 16, 64, 4, 4, measured=True),
        Config(64, 64, 64, 4, 4, measured=True),
        Config(128, 128, 64, 4, 3, measured=True),
        Config(128, 256, 64, 8, 3, measured=True),
    ),
    ("sm_100", "half"): (Config(128, 16, 64, 4, 4), Config(128, 64, 64, 4, 4), Config(128, 128, 64, 8, 3)),
    ("gfx942", "half"): (Config(64, 16, 64, 4, 2), Config(64, 64, 64, 4, 2), Config(128, 128, 32, 8, 2)),
}
"""masked_linear."""


# Every element of a tile has an address of its own, for which a step of 64 leaves no registers.
CONVOLUTION: dict[tuple[str, str], tuple[Config, ...]] = {
    **LINEAR,
    ("sm_80", "ieee"): (Config(64, 16, 32, 4, 2), Config(64, 64, 32, 8, 2)),
    ("sm_90", "tf32"): (Config(64, 16, 32, 4, 4), Config(64, 64, 32, 4, 4)),
    ("sm_80", "half"): (Config(64, 16, 32, 4, 4), Config(64, 64, 32, 4, 3), Config(64, 128, 32, 8, 3)),
    ("sm_90", "half"): (Config(64, 16, 32, 4, 4), Config(64, 64, 32, 4, 4), Config(128, 128, 32, 8, 4)),
    ("sm_100", "half"): (Config(64, 16, 32, 4, 4), Config(64, 64, 32, 4, 4), Config(128, 128, 32, 8, 4)),
}
"""masked_conv2d and gated_conv2d."""

CHANNELS_LAST: dict[tuple[str, str], tuple[Config, ...]] = {
    **CONVOLUTION,
    ("sm_80", "half"): (Config(64, 16, 32, 4, 4), Config(64, 64, 64, 4, 3), Config(128, 128, 32, 8, 3)),
    ("sm_90", "half"): (Config(64, 16, 64, 4, 4), Config(64, 64, 64, 4, 4), Config(128, 128, 64, 8, 3)),
    ("sm_100", "half"): (Config(64, 16, 64, 4, 4), Config(128, 64, 64, 4, 4), Config(128, 128, 64, 8, 3)),
}
"""masked_conv2d and gated_conv2d in the order of `channels_last`."""

# With edits a row's result must not depend on who else is in the batch, and the number of rows does. So there is one
# entry, or several that sum in one order: the tile of the weight and the step are the same, and with the tile the
# entries that go through one matrix instruction. wgmma sums over 16 of the depth at a time, whatever its width; how it
# sums these NVIDIA does not say. On the H200 all widths gave the same bits, which a test on a GPU compares.
# The sum over entries that follows the product takes registers too.
EDITED_LINEAR: dict[tuple[str, str], tuple[Config, ...]] = {
    ("sm_80", "ieee"): (Config(64, 16, 32, 4, 2),),
    ("sm_90", "ieee"): (Config(64, 16, 32, 4, 2),),
    ("sm_100", "ieee"): (Config(64, 16, 32, 4, 2),),
    ("gfx942", "ieee"): (Config(64, 64, 32, 4, 2),),
    ("sm_80", "tf32"): (Config(64, 64, 32, 4, 3),),
    ("sm_90", "tf32"): (Config(64, 64, 32, 4, 3),),
    ("sm_100", "tf32"): (Config(64, 64, 32, 4, 3),),
    ("sm_80", "tf32x3"): (Config(64, 32, 32, 4, 3),),
    ("sm_90", "tf32x3"): (Config(64, 32, 32, 4, 3),),
    ("sm_100", "tf32x3"): (Config(64, 32, 32, 4, 3),),
    ("sm_80", "half"): (Config(64, 64, 64, 4, 3),),
    ("sm_90", "half"): (
        Config(64, 16, 64, 4, 4, measured=True),
        Config(64, 64, 64, 4, 3, measured=True),
        Config(64, 128, 64, 4, 3, measured=True),
        Config(64, 256, 64, 8, 3, measured=True),
    ),
    ("sm_100", "half"): (Config(64, 64, 64, 4, 3),),
    ("gfx942", "half"): (Config(64, 64, 64, 4, 2),),
}
"""edited_linear."""

EDITED_CONVOLUTION: dict[tuple[str, str], tuple[Config, ...]] = {
    **EDITED_LINEAR,
    ("sm_80", "ieee"): (Config(64, 32, 32, 8, 2),),
    ("sm_90", "ieee"): (Config(64, 64, 32, 8, 2),),
    ("sm_100", "ieee"): (Config(64, 64, 32, 8, 2),),
    ("sm_80", "tf32x3"): (Config(64, 16, 32, 4, 3),),
    ("sm_80", "half"): (Config(64, 64, 32, 8, 3),),
    ("sm_90", "half"): (Config(64, 64, 32, 8, 3),),
    ("sm_100", "half"): (Config(64, 64, 32, 8, 3),),
}
"""edited_conv2d."""

# Rows are the left operand here, so it is block_rows that is at least 64.
GATED_LINEAR: dict[tuple[str, str], tuple[Config, ...]] = {
    ("sm_80", "ieee"): (Config(64, 64, 32, 4, 2),),
    ("sm_90", "ieee"): (Config(64, 64, 32, 8, 2),),
    ("sm_100", "ieee"): (Config(64, 64, 32, 8, 2),),
    ("gfx942", "ieee"): (Config(64, 64, 32, 4, 2),),
    ("sm_80", "tf32"): (Config(64, 64, 32, 4, 3),),
    ("sm_90", "tf32"): (Config(64, 64, 32, 4, 4), Config(128, 128, 32, 8, 4)),
    ("sm_100", "tf32"): (Config(64, 64, 32, 4, 4), Config(128, 128, 32, 8, 3)),
    ("sm_80", "tf32x3"): (Config(64, 64, 32, 8, 3),),
    ("sm_90", "tf32x3"): (Config(64, 64, 32, 8, 3),),
    ("sm_100", "tf32x3"): (Config(64, 64, 32, 8, 3),),
    ("sm_80", "half"): (Config(64, 64, 64, 4, 3), Config(128, 128, 32, 8, 3)),
    ("sm_90", "half"): (Config(64, 64, 64, 4, 4), Config(128, 128, 64, 8, 3)),
    ("sm_100", "half"): (Config(128, 64, 64, 4, 4), Config(128, 128, 64, 8, 3)),
    ("gfx942", "half"): (Config(64, 64, 64, 4, 2), Config(128, 128, 32, 8, 2)),
}
"""gated_linear."""

PRODUCTS = {
    "gated_linear": GATED_LINEAR,
    "gated_conv2d": CONVOLUTION,
    "masked_linear": LINEAR,
    "masked_conv2d": CONVOLUTION,
    "masked_conv2d_last": CHANNELS_LAST,
    "gated_conv2d_last": CHANNELS_LAST,
    "edited_linear": EDITED_LINEAR,
    "edited_conv2d": EDITED_CONVOLUTION,
}
"""Operator to (architecture, arithmetic) to entries, which grow in rows. `_last` is the order of `channels_last`. The
first whose rows hold all rows (positions, of images) of a variant is taken, or the last."""


def architecture(device: torch.device) -> str:
    """The entry of `ARCHITECTURES` that serves a device; sm_80 for any NVIDIA device that has none of its own."""
    if device.type != "cuda":  # interpreted
        return "sm_80"
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    return {9: "sm_90", 10: "sm_100"}.get(torch.cuda.get_device_capability(device)[0], "sm_80")


def arithmetic(x: torch.Tensor, precision: str) -> str:
    """The entry of `ARITHMETIC` for operands like x, if float32 is to be multiplied with this precision."""
    if x.dtype != torch.float32:
        return "half"
    # AMD's matrix instructions for float32 keep all of it, so there is nothing to gain by less.
    return "ieee" if architecture(x.device) == "gfx942" else precision


def product(op: str, x: torch.Tensor, rows: int, precision: str) -> Config:
    """The configuration of an operator for x on its device, with so many rows per variant."""
    entries = PRODUCTS[op][architecture(x.device), arithmetic(x, precision)]
    return next((entry for entry in entries if entry.block_rows >= rows), entries[-1])


def dot_precision(x: torch.Tensor, precision: str) -> str:
    """What tl.dot is told for operands like x."""
    chosen = arithmetic(x, precision)
    return "ieee" if chosen == "half" else chosen


class ScoresConfig(NamedTuple):
    """How the gradient of a weight is cut up: tiles of the weight by steps of the sum over rows."""

    block_n: int
    block_k: int
    block_rows: int
    num_warps: int
    num_stages: int
    measured: bool = False

    @property
    def blocks(self) -> dict[str, int]:
        """The sizes as the kernels name them."""
        return {"BN": self.block_n, "BK": self.block_k, "BR": self.block_rows}

    @property
    def options(self) -> dict[str, int | bool]:
        """What Triton is told beside the arguments."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}


# Three float32 tiles of sums: 64 by 64 keeps them in registers.
SCORES: dict[tuple[str, str], ScoresConfig] = {
    ("sm_80", "ieee"): ScoresConfig(64, 64, 16, 8, 2),
    ("sm_90", "ieee"): ScoresConfig(64, 64, 16, 8, 2),
    ("sm_100", "ieee"): ScoresConfig(64, 64, 16, 8, 2),
    ("gfx942", "ieee"): ScoresConfig(64, 64, 16, 4, 2),
    ("sm_80", "tf32"): ScoresConfig(64, 64, 32, 4, 3),
    ("sm_90", "tf32"): ScoresConfig(64, 64, 32, 4, 3),
    ("sm_100", "tf32"): ScoresConfig(64, 64, 32, 4, 3),
    ("sm_80", "tf32x3"): ScoresConfig(64, 64, 16, 8, 2),
    ("sm_90", "tf32x3"): ScoresConfig(64, 64, 32, 8, 2),
    ("sm_100", "tf32x3"): ScoresConfig(64, 64, 32, 8, 2),
    ("sm_80", "half"): ScoresConfig(64, 64, 32, 4, 3),
    ("sm_90", "half"): ScoresConfig(64, 64, 64, 4, 3),
    ("sm_100", "half"): ScoresConfig(64, 64, 64, 4, 3),
    ("gfx942", "half"): ScoresConfig(64, 64, 32, 4, 2),
}

BLOCK_WORDS = 32
"""Words of 32 bits per program of the kernels on bits."""

BLOCK_COUNTED = 256
"""Words per step of count_bits."""

OPTIONS_OF_BITS = {"num_warps": 4, "enable_fp_fusion": True}
"""What Triton is told of the kernels on bits; of fusion only so that it does not ask."""

MOST_PROGRAMS = 65535
"""The limit of the second and third dimension of a grid."""


def scores(x: torch.Tensor, precision: str) -> ScoresConfig:
    """The configuration for masked_linear_scores with x on its device."""
    return SCORES[architecture(x.device), arithmetic(x, precision)]
