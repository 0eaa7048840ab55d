"""gram_bits: how many bits each two rows have in common."""

import torch
from torch import Tensor

from cad_fast.ops import backends, checks, reference
from cad_fast.ops.define import define


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
    return _op(words, backend)


def _empty(words: Tensor) -> Tensor:
    return words.new_empty((words.shape[0], words.shape[0]))


@define("gram_bits", _empty)
def _op(words: Tensor) -> None:
    checks.tensor("words", words, (torch.int32,))
    if words.dim() != 2:
        raise ValueError(f"words must be [m, w], got {checks.shape(words)}")
    if words.shape[1] >= 2**26:
        raise ValueError(f"words must have fewer than {2**26} words a row, got {words.shape[1]}")


def _native_gram_bits(words: Tensor) -> Tensor:
    words = words.contiguous()
    m, w = words.shape
    counts = torch.empty((m, m), dtype=torch.int32)
    if m:
        backends.native.module().gram_bits(words.data_ptr(), m, w, counts.data_ptr())
    return counts


_op.implement(
    native=_native_gram_bits,
    reference=reference.gram_bits,
)
