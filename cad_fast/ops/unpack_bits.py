"""unpack_bits: packed bits back to a mask."""

from typing import Any

import torch
from torch import Tensor

from cad_fast.ops import backends, checks, dispatch, reference
from cad_fast.ops.registry import Op, register


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
    _check_arguments(words, n)
    return _op(words, n, backend)


def _check_arguments(words: Any, n: Any) -> None:
    checks.tensor("words", words, (torch.int32,))
    checks.size("n", n)
    if words.shape[-1] != checks.bits.words_for(n):
        raise ValueError(f"words must hold ceil({n} / 32) = {checks.bits.words_for(n)} words, got {words.shape[-1]}")


@torch.library.custom_op("cad_fast::unpack_bits", mutates_args=())
def _op(words: Tensor, n: int, backend: str | None) -> Tensor:
    _check_arguments(words, n)
    return dispatch.run("unpack_bits", backend, words, n)


@_op.register_fake
def _(words: Tensor, n: int, backend: str | None) -> Tensor:
    _check_arguments(words, n)
    return words.new_empty((*words.shape[:-1], n), dtype=torch.bool)


checks.bits.register_rowwise_vmap(_op)


def _native_unpack_bits(words: Tensor, n: int) -> Tensor:
    words = words.contiguous()
    mask = torch.empty((*words.shape[:-1], n), dtype=torch.bool)
    backends.native.load().unpack_bits(words.data_ptr(), mask.data_ptr(), checks.bits.row_count(words.shape), n)
    return mask


register(
    Op(
        "unpack_bits",
        _op,
        {
            "triton": backends.triton.of("unpack_bits"),
            "native": _native_unpack_bits,
            "reference": reference.unpack_bits,
        },
    )
)
