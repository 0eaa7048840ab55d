"""Checks of arguments that operators share; each error names the argument and says what was expected."""

from cad_fast.ops.checks import bits, conv, edits, gates, linear
from cad_fast.ops.checks.check import exact_shape, same_device, shape, size, tensor

__all__ = [
    "bits",
    "conv",
    "edits",
    "gates",
    "linear",
    "exact_shape",
    "same_device",
    "shape",
    "size",
    "tensor",
]
