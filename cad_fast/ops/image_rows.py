"""Convolutions as products of rows: small images and 1x1 kernels, where the linear kernels use the tile unit."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from cad_fast.ops import backends, checks
from cad_fast.ops.checks.conv import Geometry

MOST_POSITIONS = 64
"""Of an image, where a kernel is larger than 1x1."""
# By count, not measured: laying out patches takes as long as the product does with some hundred filters, and what it
# saves, bringing each variant's weight into the layout of torch's convolution, is shared by the positions.

PATCHES_BYTES = 16 << 20
"""Memory for patches; the images are divided accordingly."""


def pays(x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether the product of rows is to run, on images [..., channels, H, W]."""
    if not backends.native.has_tiles(x.dtype) or geometry.groups != 1:
        return False
    if list(weight.shape[2:]) == [1, 1] and list(geometry.padding) == [0, 0]:
        return geometry.input_size is None or list(geometry.stride) == [1, 1]
    positions = math.prod(checks.conv.out_size(x.shape[-2:], weight, geometry)) if geometry.input_size is None else 0
    return 0 < positions <= MOST_POSITIONS


def patches(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Images [B, channels, H, W] as rows [B, positions, channels * kh * kw], of what each output position sees."""
    if list(weight.shape[2:]) == [1, 1] and list(geometry.padding) == [0, 0]:
        seen = x[..., :: geometry.stride[0], :: geometry.stride[1]]
        return seen.movedim(-3, -1).flatten(1, 2).contiguous()
    moves = (tuple(pair) for pair in (geometry.dilation, geometry.padding, geometry.stride))
    columns = torch.nn.functional.unfold(x, tuple(weight.shape[2:]), *moves)
    return columns.mT.contiguous()


def multiply(
    x: Tensor, weight: Tensor, geometry: Geometry, group: int, product: Callable[[Tensor, slice], Tensor]
) -> Tensor:
    """The convolution of images [B, channels, H, W], a part after another.

    Args:
        x: the images.
        weight: [N, C, kh, kw].
        geometry: of the convolution, for which `pays` holds.
        group: how many images must stay together.
        product: gives [B', positions, outputs] for the patches of a slice of the images.
    """
    channels, *size = checks.conv.result_shape(x, weight, geometry)[-3:]
    row_bytes = x.element_size() * math.prod(size) * math.prod(weight.shape[1:])
    step = group * max(1, PATCHES_BYTES // max(1, group * row_bytes))
    y = torch.empty((x.shape[0], *size, channels), dtype=x.dtype)
    for first in range(0, x.shape[0], step):
        part = slice(first, min(first + step, x.shape[0]))
        y[part] = product(patches(x[part], weight, geometry), part).view(-1, *size, channels)
    return y.movedim(-1, -3)
