"""Images, weights and words of convolutions with channels last."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cad_fast.ops.pack_bits import pack_bits
from cad_fast.ops.unpack_bits import unpack_bits
from cad_fast.remembered import remembered


def images_channels_last(out: Tensor) -> tuple[Tensor, Tensor]:
    """Views or memory for images [..., channels, height, width] to be written with channels last.

    Returns:
        `out` as [..., height, width, channels], and the same if it is contiguous so, else new memory of this shape.
    """
    seen = out.movedim(-3, -1)
    return seen, seen if seen.is_contiguous() else torch.empty(seen.shape, dtype=out.dtype, device=out.device)


def weight_channels_last(weight: Tensor) -> Tensor:
    """The weight [N, C, kh, kw] as [N, kh, kw, C], contiguous.

    A copy unless it lies so already, in every call: adapters are merged through `weight.data`, which nothing counts.
    """
    return weight.permute(0, 2, 3, 1).contiguous()


def words_channels_last(words: Tensor, weight: Tensor) -> Tensor:
    """The words [V, N, width] of a weight for its elements in the order of `weight_channels_last`, remembered."""
    filters, channels, *kernel = weight.shape
    if kernel == [1, 1]:
        return words

    def make() -> Tensor:
        # A backend that was chosen for convolutions need not have these operators.
        mask = unpack_bits(words, channels * kernel[0] * kernel[1], backend="auto")
        return pack_bits(mask.view(-1, filters, channels, *kernel).permute(0, 1, 3, 4, 2).flatten(2), backend="auto")

    return remembered("words with channels last", [words], tuple(weight.shape), make)


def place_channels_last(indices: Tensor, shape: Sequence[int]) -> Tensor:
    """Where elements of a flattened weight of this shape [N, C, kh, kw] are in the flattened [N, kh, kw, C]."""
    _, channels, *kernel = shape
    area = kernel[0] * kernel[1]
    filters, within = indices // (channels * area), indices % (channels * area)
    return filters * (channels * area) + within % area * channels + within // area
