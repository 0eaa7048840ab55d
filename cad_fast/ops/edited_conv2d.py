"""edited_conv2d: one convolution whose rows are split into groups, each with its own sparse edit of the weight."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cad_fast.ops import backends, checks, image_rows, layout, reference
from cad_fast.ops.checks.conv import Geometry
from cad_fast.ops.define import define
from cad_fast.ops.edit_masks import edit_products
from cad_fast.ops.registry import OPS


def edited_conv2d(
    x: Tensor,
    weight: Tensor,
    rows: Tensor,
    offsets: Tensor,
    indices: Tensor,
    factors: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    input_size: Sequence[int] | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Convolve each group of rows with its own sparse edit of the weight: some elements multiplied by factors.

    Group g owns the rows rows[g]:rows[g + 1] of x and the edit offsets[g]:offsets[g + 1] of indices and factors.
    Factor 0 gives exact zeros, whatever the element was. Differentiable in x, weight and bias (the gradient by the
    weight is slow).

    Args:
        x: [R, C, H, W], float32, bfloat16 or float16; any strides.
        weight: [N, C / groups, kh, kw], dtype of x; any strides.
        rows: [G + 1], int64 on the CPU, ascending from 0 to R; a group may be empty.
        offsets: [G + 1], int64 on the CPU, ascending from 0 to E; an edit may be empty.
        indices: [E], int64, into the weight flattened in the order (filter, channel, row, column); strictly ascending
            within an edit.
        factors: [E], float32; rounded to x's dtype.
        bias: [N], dtype of x, or None.
        stride: as for torch's conv2d, an int or two of them; so are the next ones.
        padding: rows and columns of zeros around the images.
        dilation: the distance between neighbouring elements of the kernel on the image.
        groups: how many groups the channels fall into, an int.
        input_size: (H, W) asks for the transposed product, as in the gradient by x: x is then [R, N, H', W'] and bias
            None.
        backend: "auto", "hopper", "triton", "native" or "reference"; None means the one in
            force (`use_backend`).

    Returns:
        [R, N, H', W'], or [R, C, H, W] if input_size is given; dtype of x, channels last where torch's conv2d would
        give that.

    Raises:
        TypeError: an argument is no tensor or no int where one is needed, or a tensor has another dtype.
        ValueError: a shape, a device, a number, an index or an offset does not fit; the message names it.
        RuntimeError: the backend asked for cannot run.

    Source: the edits of CAD (arXiv 2412.02542), several at once in one batch.
    """
    return _op(x, weight, rows, offsets, indices, factors, bias, stride, padding, dilation, groups, input_size, backend)


@define("edited_conv2d", checks.conv.empty_of_arguments, direct=True)
def _op(
    x: Tensor,
    weight: Tensor,
    rows: Tensor,
    offsets: Tensor,
    indices: Tensor,
    factors: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    input_size: Sequence[int] | None,
) -> tuple[Any, ...]:
    geometry = checks.conv.geometry(stride, padding, dilation, groups, input_size)
    checks.conv.check_operands(x, weight, bias, geometry, 4)
    checks.edits.check_shapes(x, rows, offsets, indices, factors)
    return x, weight, rows, offsets, indices, factors, bias, *geometry


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, rows, offsets, indices, factors, _, *geometry, backend = inputs
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight, rows, offsets, indices, factors)
    ctx.geometry, ctx.image_size, ctx.backend = Geometry(*geometry), list(x.shape[-2:]), backend


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, rows, offsets, indices, factors = ctx.saved_tensors
    for_x = for_weight = for_bias = None
    if ctx.needs_input_grad[0]:
        back = ctx.geometry.transposed(ctx.image_size if ctx.geometry.input_size is None else None)
        for_x = _op(grad, weight, rows, offsets, indices, factors, None, *back, ctx.backend)
    if ctx.needs_input_grad[1]:
        for_weight = _weight_gradient(grad, x, weight, rows, offsets, indices, factors, ctx.geometry)
    if ctx.needs_input_grad[6]:
        for_bias = grad.sum((0, 2, 3))
    return for_x, for_weight, None, None, None, None, for_bias, *[None] * 6


def _weight_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    rows: Tensor,
    offsets: Tensor,
    indices: Tensor,
    factors: Tensor,
    geometry: Geometry,
) -> Tensor:
    """Row by row, and without a look at the groups' bounds, so that it can be traced."""
    device = weight.device
    entries = torch.arange(indices.shape[0], device=device)
    edit_of_entry = torch.bucketize(entries, offsets[1:].to(device), right=True)
    group_of_row = torch.bucketize(torch.arange(x.shape[0], device=device), rows[1:].to(device), right=True)
    total = torch.zeros_like(weight)
    for row in range(x.shape[0]):
        gradient = checks.conv.weight_gradient(grad[row : row + 1], x[row : row + 1], weight, geometry)
        factors_of_row = torch.where(edit_of_entry == group_of_row[row], factors, 1.0)
        factor = torch.ones(weight.numel(), device=device).scatter_reduce(0, indices, factors_of_row, "prod")
        factor = factor.reshape(weight.shape).to(weight.dtype)
        total = total + torch.where(factor == 0, torch.zeros_like(gradient), gradient * factor)
    return total


_op.custom_op.register_autograd(_backward, setup_context=_setup_context)


def _native_edited_conv2d(
    x: Tensor,
    weight: Tensor,
    rows: Tensor,
    offsets: Tensor,
    indices: Tensor,
    factors: Tensor,
    bias: Tensor | None,
    *geometry: Any,
) -> Tensor:
    geometry = Geometry(*geometry)
    if not len(indices):
        return checks.conv.laid_out(checks.conv.convolve(x, weight, bias, geometry), x, weight, geometry)
    if image_rows.pays(x, weight, geometry):
        y = _by_rows(x, weight, rows, (offsets, indices, factors), bias, geometry)
        return checks.conv.laid_out(y, x, weight, geometry)
    out = checks.conv.empty_result(x, weight, geometry)
    for group, edited in backends.vendor.edited_weights(weight, rows, offsets, indices, factors):
        out[group].copy_(checks.conv.convolve(x[group], edited, bias, geometry))
    return out


def _by_rows(
    x: Tensor, weight: Tensor, rows: Tensor, edits: tuple[Tensor, ...], bias: Tensor | None, geometry: Geometry
) -> Tensor:
    """Patches as rows of edited_linear, for the tile unit."""
    linear = OPS["edited_linear"].implementations["native"]

    def product(patches: Tensor, part: slice) -> Tensor:
        bounds = (rows.clamp(part.start, part.stop) - part.start) * patches.shape[1]
        transposed = geometry.input_size is not None
        return linear(patches.flatten(0, 1), weight.flatten(1), bounds, *edits, bias, transposed)

    return image_rows.multiply(x, weight, geometry, 1, product)


def _hopper_edited_conv2d(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    edit, bias, geometry = rest[:4], rest[4], Geometry(*rest[5:])
    out = checks.conv.empty_result(x, weight, geometry)
    written, y = layout.images_channels_last(out)
    area = math.prod(out.shape[-2:])
    for edited, words, factors, runs in edit_products(weight, edit, x.shape[0], area, channels_last=True):
        last = layout.weight_channels_last(edited)
        backends.hopper.convolution_of_runs(x.movedim(-3, -1), last, words, bias, factors, geometry, runs, y)
    return out if y is written else out.copy_(y.movedim(-1, -3))


def _triton_edited_conv2d(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    out = checks.conv.empty_result(x, weight, Geometry(*rest[-5:]))
    return backends.triton.of("edited_conv2d", products=True)(x, weight, *rest, out=out)


def _reference(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    geometry = Geometry(*rest[-5:])
    return checks.conv.laid_out(reference.edited_conv2d(x, weight, *rest), x, weight, geometry)


def _with_values_checked(implementation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The implementation, after what only a look at rows, offsets and indices can tell."""

    def checked(x: Tensor, weight: Tensor, rows: Tensor, offsets: Tensor, indices: Tensor, *rest: Any) -> Tensor:
        checks.edits.check_values(x, weight, rows, offsets, indices)
        return implementation(x, weight, rows, offsets, indices, *rest)

    return checked


_op.implement(
    kernels=("edit_weight",),
    hopper=_hopper_edited_conv2d,
    triton=_with_values_checked(_triton_edited_conv2d),
    native=_with_values_checked(_native_edited_conv2d),
    reference=_with_values_checked(_reference),
)
