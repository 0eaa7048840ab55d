"""Weights and words of convolutions in the order in which images lie channels last."""

from torch import Tensor

from cad_fast.ops.pack_bits import pack_bits
from cad_fast.ops.unpack_bits import unpack_bits


def weight_channels_last(weight: Tensor) -> Tensor:
    """The weight as [filters, kernel rows, kernel columns, channels], contiguous."""
    return weight.permute(0, 2, 3, 1).contiguous()


def words_channels_last(words: Tensor, weight: Tensor) -> Tensor:
    """The words [V, filters, width] of a weight for its elements in the order of `weight_channels_last`."""
    filters, channels, *kernel = weight.shape
    if kernel == [1, 1]:
        return words.contiguous()
    mask = unpack_bits(words, channels * kernel[0] * kernel[1]).view(-1, filters, channels, *kernel)
    return pack_bits(mask.permute(0, 1, 3, 4, 2).flatten(2))
