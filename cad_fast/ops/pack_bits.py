"""pack_bits: a mask to one bit per element."""

import torch
from torch import Tensor

from cad_fast.ops import backends, checks, reference
from cad_fast.ops.define import define


def pack_bits(mask: Tensor, *, backend: str | None = None) -> Tensor:
    """Pack a mask along its last dimension: bit i of word j is whether element 32 * j + i is nonzero.

    Args:
        mask: [..., n], bool or uint8; any strides.
        backend: "auto", "triton", "native" or "reference"; None means the one in force (`use_backend`).

    Returns:
        [..., ceil(n / 32)], int32; the bits behind element n - 1 are zero.

    Raises:
        TypeError: `mask` is no tensor or has another dtype.
        ValueError: `mask` has no dimension.
        RuntimeError: the backend asked for cannot run.
    """
    return _op(mask, backend)


def _empty(mask: Tensor) -> Tensor:
    return mask.new_empty((*mask.shape[:-1], checks.bits.words_for(mask.shape[-1])), dtype=torch.int32)


@define("pack_bits", _empty)
def _op(mask: Tensor) -> None:
    checks.tensor("mask", mask, (torch.bool, torch.uint8))


checks.bits.register_rowwise_vmap(_op.custom_op)


def _native_pack_bits(mask: Tensor) -> Tensor:
    mask = mask.contiguous()
    n = mask.shape[-1]
    words = torch.empty((*mask.shape[:-1], checks.bits.words_for(n)), dtype=torch.int32)
    backends.native.module().pack_bits(mask.data_ptr(), words.data_ptr(), checks.bits.row_count(mask.shape), n)
    return words


_op.implement(
    triton=backends.triton.of("pack_bits"),
    native=_native_pack_bits,
    reference=reference.pack_bits,
)
