"""Sorted component numbers as the gaps between them: half the bytes of the numbers, and read by a cumulative sum."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_COUNT = 2**31 - 1  # components of one module; a gap then fits in int32, and sums of gaps in int64
_MOST_16_BITS = 2**16 - 1


def encode_gaps(indices: Tensor) -> Tensor:
    """Encode sorted component numbers as gaps: how many components are skipped before each.

    Args:
        indices: int64 [k], k > 0, ascending without repetition, in 0..2^31-2.

    Returns:
        [k], uint16 where every gap fits, int32 otherwise. ``cumsum(gaps + 1) - 1`` gives the numbers back.
    """
    gaps = indices.diff(prepend=indices.new_full((1,), -1)) - 1
    return gaps.to(torch.uint16 if int(gaps.max()) <= _MOST_16_BITS else torch.int32)


def decode_gaps(gaps: Tensor, count: int) -> Tensor:
    """Decode what ``encode_gaps`` gave, or anything else that has its dtype.

    Args:
        gaps: [k], uint16 or int32.
        count: how many components the module has.

    Returns:
        int64 [k], ascending without repetition, in 0..count-1.

    Raises:
        ValueError: a gap is negative, or the numbers do not stay below ``count``.
    """
    wide = gaps.to(torch.int64)
    if len(wide) and int(wide.min()) < 0:
        raise ValueError(f"a gap is {int(wide.min())}, expected at least 0")
    indices = wide.add_(1).cumsum_(0).sub_(1)
    if len(indices) and int(indices[-1]) >= count:
        raise ValueError(f"the gaps lead to component {int(indices[-1])}, outside 0..{count - 1}")
    return indices
