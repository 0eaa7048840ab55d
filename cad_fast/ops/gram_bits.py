"""gram_bits: how many bits each two rows have in common."""

from typing import Any

import torch
from torch import Tensor

from cad_fast.ops import backends, checks, dispatch, reference
from cad_fast.ops.registry import Op, register


def gram_bits(words: Tensor, *, backend: str | None = None) -> Tensor:
    """Count, for each two rows, the bits that are set in both: B B^T of the matrix B of zeros and ones, exactly.

    Args:
        words: [m, w], int32, any strides; fewer than 2**26 words a row.
        backend: "auto", "native" or "reference"; None means the one in force (`use_backend`).

    Returns:
        [m, m], int32, symmetric; the diagonal counts each row's own bits.

    Raises:
        TypeError: `words` is no tensor or has another dtype.
        ValueError: `words` has not two dimensions, or too many words a row for counts of 32 bits.
        RuntimeError: the backend asked for cannot run.
    """
    _check_arguments(words)
    return _op(words, backend)


def _check_arguments(words: Any) -> None:
    checks.tensor("words", words, (torch.int32,))
    if words.dim() != 2:
        raise ValueError(f"words must be [m, w], got {checks.shape(words)}")
    if words.shape[1] >= 2**26:
        raise ValueError(f"words must have fewer than {2**26} words a row, got {words.shape[1]}")


@torch.library.custom_op("cad_fast::gram_bits", mutates_args=())
def _op(words: Tensor, backend: str | None) -> Tensor:
    _check_arguments(words)
    return dispatch.run("gram_bits", backend, words)


@_op.register_fake
def _(words: Tensor, backend: str | None) -> Tensor:
    _check_arguments(words)
    return words.new_empty((words.shape[0], words.shape[0]))


def _native_gram_bits(words: Tensor) -> Tensor:
    words = words.contiguous()
    m, w = words.shape
    counts = torch.empty((m, m), dtype=torch.int32)
    if m:
        backends.native.load().gram_bits(words.data_ptr(), m, w, counts.data_ptr())
    return counts


register(Op("gram_bits", _op, {"native": _native_gram_bits, "reference": reference.gram_bits}))
