"""What the bit operators share: the layout of packed words, and vmap over any leading dimension.

Bit i of word j is element 32 * j + i of the last dimension; the bits behind the last element are zero.
"""

import math
from typing import Any

from torch.library import CustomOpDef

WORD_BITS = 32


def words_for(n: int) -> int:
    """How many words hold n bits."""
    return (n + WORD_BITS - 1) // WORD_BITS


def row_count(shape: tuple[int, ...]) -> int:
    """How many rows a tensor of this shape has: the product of all dimensions but the last."""
    return math.prod(shape[:-1])


def register_rowwise_vmap(op: CustomOpDef) -> None:
    """Give vmap to an operator that treats the last dimension of its first argument and takes any in front of it."""

    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Any, *rest: Any) -> tuple[Any, int]:
        return op(x.movedim(in_dims[0], 0), *rest), 0

    op.register_vmap(vmap)
