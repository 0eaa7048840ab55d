"""count_bits: how many bits are set."""

import torch
from torch import Tensor

from cad_fast.ops import backends, checks, reference
from cad_fast.ops.define import define


def count_bits(words: Tensor, *, backend: str | None = None) -> Tensor:
    """Count the set bits along the last dimension, those behind the last element of a mask included.

    Args:
        words: [..., w], int32; any strides.
        backend: "auto", "triton", "native" or "reference"; None means the one in force (`use_backend`).

    Returns:
        [...], int64.

    Raises:
        TypeError: `words` is no tensor or has another dtype.
        ValueError: `words` has no dimension.
        RuntimeError: the backend asked for cannot run.
    """
    return _op(words, backend)


def _empty(words: Tensor) -> Tensor:
    return words.new_empty(words.shape[:-1], dtype=torch.int64)


@define("count_bits", _empty)
def _op(words: Tensor) -> None:
    checks.tensor("words", words, (torch.int32,))


checks.bits.register_rowwise_vmap(_op.custom_op)


def _native_count_bits(words: Tensor) -> Tensor:
    words = words.contiguous()
    counts = torch.empty(words.shape[:-1], dtype=torch.int64)
    backends.native.module().count_bits(
        words.data_ptr(), counts.data_ptr(), checks.bits.row_count(words.shape), words.shape[-1]
    )
    return counts


_op.implement(
    triton=backends.triton.of("count_bits"),
    native=_native_count_bits,
    reference=reference.count_bits,
)
