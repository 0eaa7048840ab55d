"""Operators as the toolkit calls them on the CPU, to prepare what a model's layers then compute with.

A backend that is chosen for the layers of a model on a GPU is not meant for these calls, and could not run them. All
backends give the same bits.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from cad_fast.ops.bits_linear import bits_linear as _bits_linear
from cad_fast.ops.count_bits import count_bits as _count_bits
from cad_fast.ops.dispatch import get_backend
from cad_fast.ops.gram_bits import gram_bits as _gram_bits
from cad_fast.ops.pack_bits import pack_bits as _pack_bits
from cad_fast.ops.seeded_mask import seeded_mask as _seeded_mask
from cad_fast.ops.unpack_bits import unpack_bits as _unpack_bits

BACKENDS = ("native", "reference")
"""Those that run on the CPU; a choice of one of them holds here too."""

P = ParamSpec("P")
Result = TypeVar("Result")


def backend() -> str:
    """The backend in force, if it runs on the CPU; otherwise "auto"."""
    chosen = get_backend()
    return chosen if chosen in BACKENDS else "auto"


def _on_host(op: Callable[P, Result]) -> Callable[P, Result]:
    @functools.wraps(op)
    def call(*args: P.args, **kwargs: P.kwargs) -> Result:
        kwargs["backend"] = backend()
        return op(*args, **kwargs)

    return call


bits_linear = _on_host(_bits_linear)
count_bits = _on_host(_count_bits)
gram_bits = _on_host(_gram_bits)
pack_bits = _on_host(_pack_bits)
seeded_mask = _on_host(_seeded_mask)
unpack_bits = _on_host(_unpack_bits)
