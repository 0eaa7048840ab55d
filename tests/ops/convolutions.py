"""What the cases of the convolutions share: geometries, and layouts."""

import torch
from torch import Tensor

# Stride, padding, dilation and groups.
GEOMETRIES = {
    "plain": ([1, 1], [0, 0], [1, 1], 1),
    "same": ([1, 1], [1, 1], [1, 1], 1),
    "strided": ([2, 1], [0, 2], [1, 1], 1),
    "dilated": ([1, 1], [2, 2], [2, 1], 1),
    "grouped": ([1, 1], [1, 1], [1, 1], 2),
}
SAME = GEOMETRIES["same"]


def channels_last(images: Tensor) -> Tensor:
    """The same images [..., C, H, W] with their channels next to each other in memory."""
    return images.movedim(-3, -1).contiguous().movedim(-1, -3)


def with_channels_last(x: Tensor, weight: Tensor, which: str) -> tuple[Tensor, Tensor]:
    """The images, the weight, or both so."""
    if which != "weight":
        x = channels_last(x)
    if which != "x":
        weight = weight.contiguous(memory_format=torch.channels_last)
    return x, weight
