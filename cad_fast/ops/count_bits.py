"""count_bits: how many bits are set."""

from typing import Any

import torch
from torch import Tensor

from cad_fast.ops import backends, checks, dispatch, reference
from cad_fast.ops.registry import Op, register


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
    _check_arguments(words)
    return _op(words, backend)


def _check_arguments(words: Any) -> None:
    checks.tensor("words", words, (torch.int32,))


@torch.library.custom_op("cad_fast::count_bits", mutates_args=())
def _op(words: Tensor, backend: str | None) -> Tensor:
    _check_arguments(words)
    return dispatch.run("count_bits", backend, words)


@_op.register_fake
def _(words: Tensor, backend: str | None) -> Tensor:
    _check_arguments(words)
    return words.new_empty(words.shape[:-1], dtype=torch.int64)


checks.bits.register_rowwise_vmap(_op)


def _native_count_bits(words: Tensor) -> Tensor:
    words = words.contiguous()
    counts = torch.empty(words.shape[:-1], dtype=torch.int64)
    backends.native.load().count_bits(
        words.data_ptr(), counts.data_ptr(), checks.bits.row_count(words.shape), words.shape[-1]
    )
    return counts


register(
    Op(
        "count_bits",
        _op,
        {
            "triton": backends.triton.of("count_bits"),
            "native": _native_count_bits,
            "reference": reference.count_bits,
        },
    )
)
