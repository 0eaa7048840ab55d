"""What the convolution operators share: checks, output sizes and layouts, and the convolution by one given weight."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cad_fast.ops.checks import check

FLOATS = (torch.float32, torch.bfloat16, torch.float16)

Pair = Sequence[int]


class Geometry(NamedTuple):
    """How the kernel moves over the images; `input_size` (H, W) asks for the transposed convolution."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    input_size: Pair | None

    def transposed(self, input_size: Pair | None) -> "Geometry":
        """The same from or to an input of this size."""
        return self._replace(input_size=input_size)


def pair(name: str, value: Any, least: int) -> list[int]:
    """An int, or two of them, as a list of two that are at least `least`."""
    values = [value, value] if isinstance(value, int | torch.SymInt) else value
    if type(values) is list and [*map(type, values)] == [int, int] and values[0] >= least <= values[1]:
        return [*values]  # as nearly always: the rest is slower
    if (
        not isinstance(values, list | tuple)
        or len(values) != 2
        or any(isinstance(item, str | float) for item in values)
    ):
        raise TypeError(f"{name} must be an int or two of them, got {value!r}")
    if min(values) < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return list(values)


def geometry(stride: Any, padding: Any, dilation: Any, groups: Any, input_size: Any) -> Geometry:
    """The arguments of a convolution, checked one by one."""
    check.size("groups", groups)
    if groups == 0:
        raise ValueError("groups must be at least 1, got 0")
    size = None if input_size is None else pair("input_size", input_size, 0)
    return Geometry(pair("stride", stride, 1), pair("padding", padding, 0), pair("dilation", dilation, 1), groups, size)


def out_size(images: Pair, weight: Tensor, geometry: Geometry) -> list[int]:
    """Height and width of the convolution of images of this height and width."""
    return [
        (images[i] + 2 * geometry.padding[i] - geometry.dilation[i] * (weight.shape[2 + i] - 1) - 1)
        // geometry.stride[i]
        + 1
        for i in range(2)
    ]


def result_shape(x: Tensor, weight: Tensor, geometry: Geometry) -> list[int]:
    """The shape of the result for x [..., C, H, W], or transposed for x [..., N, H', W']."""
    if geometry.input_size is None:
        return [*x.shape[:-3], weight.shape[0], *out_size(x.shape[-2:], weight, geometry)]
    return [*x.shape[:-3], weight.shape[1] * geometry.groups, *geometry.input_size]


def check_operands(x: Any, weight: Any, bias: Any, geometry: Geometry, dimensions: int) -> None:
    """Require x of so many dimensions, a weight and a bias that fit each other and the geometry."""
    check.tensor("x", x, FLOATS)
    check.tensor("weight", weight, (x.dtype,))
    if x.dim() != dimensions:
        raise ValueError(f"x must have {dimensions} dimensions, got shape {list(x.shape)}")
    if weight.dim() != 4 or min(weight.shape) == 0:
        raise ValueError(f"weight must have shape [N, C / groups, kh, kw], none of them 0, got {list(weight.shape)}")
    if weight.shape[0] % geometry.groups != 0:
        raise ValueError(f"weight has {weight.shape[0]} filters, which {geometry.groups} groups do not divide")
    wanted = weight.shape[1] * geometry.groups if geometry.input_size is None else weight.shape[0]
    if x.shape[-3] != wanted:
        raise ValueError(f"x must have {wanted} channels for this weight and these groups, got {x.shape[-3]}")
    if geometry.input_size is None:
        if min(out_size(x.shape[-2:], weight, geometry)) < 1:
            raise ValueError(f"images of {list(x.shape[-2:])} are too small for a kernel of {list(weight.shape[2:])}")
    elif out_size(geometry.input_size, weight, geometry) != list(x.shape[-2:]):
        size = out_size(geometry.input_size, weight, geometry)
        raise ValueError(
            f"x must have images of {size} for input_size {list(geometry.input_size)}, got {list(x.shape[-2:])}"
        )
    _check_bias(bias, weight, geometry)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} must be on {x.device} like x, got {tensor.device}")


def _check_bias(bias: Any, weight: Tensor, geometry: Geometry) -> None:
    if bias is None:
        return
    if geometry.input_size is not None:
        raise ValueError("bias must be None where input_size asks for the transposed convolution")
    check.tensor("bias", bias, (weight.dtype,))
    if list(bias.shape) != [weight.shape[0]]:
        raise ValueError(f"bias must have shape [{weight.shape[0]}], got {list(bias.shape)}")


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def empty_result(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Memory for the result, its images laid out as torch's conv2d does: channels last if x or the weight are."""
    *leading, channels, height, width = result_shape(x, weight, geometry)
    images = x if x.dim() == 4 else x.select(0, 0) if x.shape[0] > 0 else x.new_empty(x.shape[1:])
    if not _is_channels_last(images) and not _is_channels_last(weight):
        return torch.empty([*leading, channels, height, width], dtype=x.dtype, device=x.device)
    return torch.empty([*leading, height, width, channels], dtype=x.dtype, device=x.device).movedim(-1, -3)


def empty_of_arguments(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    """Memory for the result of an operator whose last arguments are those of `Geometry`."""
    return empty_result(x, weight, Geometry(*rest[-5:]))


def laid_out(y: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The result with the strides of `empty_result`, copied only if it has others."""
    wanted = empty_result(x, weight, geometry)
    return y if y.stride() == wanted.stride() else wanted.copy_(y)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """The convolution of x [R, C, H, W], or with `input_size` the transposed one of x [R, N, H', W']."""
    stride, padding, dilation, groups, input_size = geometry
    if input_size is None:
        return torch.ops.aten.convolution(x, weight, bias, stride, padding, dilation, False, [0, 0], groups)
    shape = [x.shape[0], weight.shape[1] * groups, *input_size]
    if 0 in shape or 0 in x.shape:
        return x.new_zeros(shape)
    wanted = [True, False, False]
    of_shape = x.new_empty(1).expand(shape)  # only its shape matters for the gradient by the input
    return torch.ops.aten.convolution_backward(
        x, of_shape, weight, None, stride, padding, dilation, False, [0, 0], groups, wanted
    )[0]


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The gradient by the weight of sum(grad * convolve(x, weight)), summed over the rows of x."""
    stride, padding, dilation, groups, input_size = geometry
    if input_size is not None:
        grad, x = x, grad  # grad * transposed(x) = convolution(grad) * x
    wanted = [False, True, False]
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0, 0], groups, wanted
    )[1]
