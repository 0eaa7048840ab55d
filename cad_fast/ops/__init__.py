"""Operators: one per file, each with a native and a slow reference version, registered with torch as cad_fast::<op>."""

from cad_fast.ops._backend import backend_report, can_run, get_backend, use_backend
from cad_fast.ops.bits_linear import bits_linear
from cad_fast.ops.count_bits import count_bits
from cad_fast.ops.edited_conv2d import edited_conv2d
from cad_fast.ops.edited_linear import edited_linear
from cad_fast.ops.gated_conv2d import gated_conv2d
from cad_fast.ops.gated_linear import gated_linear
from cad_fast.ops.gram_bits import gram_bits
from cad_fast.ops.masked_conv2d import masked_conv2d
from cad_fast.ops.masked_linear import masked_linear
from cad_fast.ops.masked_linear_scores import masked_linear_scores
from cad_fast.ops.pack_bits import pack_bits
from cad_fast.ops.seeded_mask import seeded_mask
from cad_fast.ops.unpack_bits import unpack_bits

__all__ = [
    "backend_report",
    "can_run",
    "get_backend",
    "use_backend",
    "bits_linear",
    "count_bits",
    "edited_conv2d",
    "edited_linear",
    "gated_conv2d",
    "gated_linear",
    "gram_bits",
    "masked_conv2d",
    "masked_linear",
    "masked_linear_scores",
    "pack_bits",
    "seeded_mask",
    "unpack_bits",
]
