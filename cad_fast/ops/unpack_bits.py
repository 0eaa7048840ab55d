"""unpack_bits: packed bits back to a mask."""

import torch
from torch import Tensor

from cad_fast.ops import backends, checks, reference
from cad_fast.ops.define import define


def unpack_bits(words: Tensor, n: int, *, backend: str | None = None) -> Tensor:
    """Unpack words along their last dimension: element 32 * j + i is bit i of word j.

    Args:
        words: [..., ceil(n / 32)], int32; any strides. Bits behind element n - 1 are ignored.
        n: how many elements the last dimension of the result has.
        backend: "auto", "triton", "native" or "reference"; None means the one in force (`use_backend`).

    Returns:
        [..., n], bool.

    Raises:
        TypeError: `words` is no tensor or has another dtype, or `n` is no int.
        ValueError: `words` has no dimension or not ceil(n / 32) words, or `n` is negative.
        RuntimeError: the backend asked for cannot run.
    """
    return _op(words, n, backend)


def _empty(words: Tensor, n: int) -> Tensor:
    return words.new_empty((*words.shape[:-1], n), dtype=torch.bool)


@define("unpack_bits", _empty)
def _op(words: Tensor, n: int) -> None:
    checks.tensor("words", words, (torch.int32,))
    checks.size("n", n)
    if words.shape[-1] != checks.bits.words_for(n):
        raise ValueError(f"words must hold ceil({n} / 32) = {checks.bits.words_for(n)} words, got {words.shape[-1]}")


checks.bits.register_rowwise_vmap(_op.custom_op)


def _native_unpack_bits(words: Tensor, n: int) -> Tensor:
    words = words.contiguous()
    mask = torch.empty((*words.shape[:-1], n), dtype=torch.bool)
    backends.native.module().unpack_bits(words.data_ptr(), mask.data_ptr(), checks.bits.row_count(words.shape), n)
    return mask


_op.implement(
    triton=backends.triton.of("unpack_bits"),
    native=_native_unpack_bits,
    reference=reference.unpack_bits,
)
