"""gated_conv2d: a convolution whose filters each variant multiplies by gates of its own."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cad_fast.ops import backends, checks, reference
from cad_fast.ops.checks.conv import Geometry
from cad_fast.ops.define import define


def gated_conv2d(
    x: Tensor,
    weight: Tensor,
    gates: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    input_size: Sequence[int] | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Convolve the images of each variant, the filters of every variant times its own gates.

    y[v] = conv2d(x[v], weight) * gates[v] + bias, a gate per filter. A gate of 0 leaves exactly the bias, even if x or
    the weight is infinite or NaN. A gate of 1 leaves, bit for bit, what the same backend gives with gates of 1 alone;
    on the CPU that is torch's own conv2d. With `input_size`, the transposed convolution of x[v] * gates[v] to an input
    of that size, by which gradients go back: a gate of 0 then drops the filter's images (the weight must be finite).

    Differentiable in `x`, `weight`, `gates` and `bias`.

    Args:
        x: [V, R, C, H, W], float32, bfloat16 or float16; any strides. With `input_size` [V, R, N, H', W'].
        weight: [N, C / groups, kh, kw], dtype of x.
        gates: [V, N], dtype of x.
        bias: [N], dtype of x, or None. Must be None with `input_size`.
        stride: as for torch's conv2d, an int or two of them; so are the next ones.
        padding: of zeros, on both sides.
        dilation: the step between elements of the kernel.
        groups: into how many groups the channels are divided.
        input_size: (H, W) asks for the transposed convolution.
        backend: "auto", "triton", "vendor", "native" or "reference"; None means the one in
            force (`use_backend`).

    Returns:
        [V, R, N, H', W'], or [V, R, C, H, W] if input_size is given; dtype of x, channels last where torch's conv2d
        would give that.

    Raises:
        TypeError: an argument is no tensor or no int where one is needed, or a tensor has another dtype.
        ValueError: a shape, a device or a number does not fit; the message names it.
        RuntimeError: the backend asked for cannot run.
    """
    return _op(x, weight, gates, bias, stride, padding, dilation, groups, input_size, backend)


@define("gated_conv2d", checks.conv.empty_of_arguments, direct=True)
def _op(
    x: Tensor,
    weight: Tensor,
    gates: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    input_size: Sequence[int] | None,
) -> tuple[Any, ...]:
    geometry = checks.conv.geometry(stride, padding, dilation, groups, input_size)
    checks.conv.check_operands(x, weight, bias, geometry, 5)
    checks.gates.check_gates(gates, x)
    checks.exact_shape("gates", gates, (x.shape[0], weight.shape[0]))
    return x, weight, gates, bias, *geometry


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, gates, _, *geometry, backend = inputs
    for_weight, for_gates = ctx.needs_input_grad[1:3]
    # The gates' gradient needs the convolution without them: it is made again, as the result has lost it to zeros.
    ctx.save_for_backward(x if for_weight or for_gates else None, weight, gates)
    ctx.geometry, ctx.image_size, ctx.backend = Geometry(*geometry), list(x.shape[-2:]), backend


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, gates = ctx.saved_tensors
    geometry, back = ctx.geometry, ctx.geometry.transposed(ctx.image_size if ctx.geometry.input_size is None else None)
    for_x, for_weight, for_gates, for_bias, *_ = ctx.needs_input_grad
    of_x = of_weight = of_gates = None
    if for_x:
        of_x = _op(grad, weight, gates, None, *back, ctx.backend)
    if for_weight:
        transposed = geometry.input_size is not None
        filters, images = (x, grad) if transposed else (grad, x)
        filters = reference.gated(filters, gates, 2)
        grads, inputs = (images, filters) if transposed else (filters, images)
        of_weight = checks.conv.weight_gradient(grads.flatten(0, 1), inputs.flatten(0, 1), weight, geometry)
    if for_gates:
        images, of_filters = (x, grad) if geometry.input_size is None else (grad, x)
        plain = geometry._replace(input_size=None)
        y = checks.conv.convolve(images.flatten(0, 1), weight, None, plain).reshape(of_filters.shape)
        of_gates = (y * of_filters).sum((1, 3, 4))
    of_bias = grad.sum((0, 1, 3, 4)) if for_bias else None
    return of_x, of_weight, of_gates, of_bias, *[None] * 6


_op.custom_op.register_autograd(_backward, setup_context=_setup_context)


def _native_gated_conv2d(x: Tensor, weight: Tensor, gates: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    geometry = Geometry(*rest)
    if geometry.input_size is None:
        y = torch.conv2d(
            x.flatten(0, 1), weight, bias, geometry.stride, geometry.padding, geometry.dilation, geometry.groups
        )
        gated = y if _is_dense(y) else y.contiguous()
        _pass(gated, gated, gates, bias, x.shape[1])
        if gated.is_contiguous() and x.is_contiguous() and weight.is_contiguous():
            return gated.view(*x.shape[:2], *gated.shape[1:])
    else:
        images = x.flatten(0, 1)
        images = images if _is_dense(images) else images.contiguous()
        gated = torch.empty_like(images)
        _pass(images, gated, gates, None, x.shape[1])
        gated = checks.conv.convolve(gated, weight, None, geometry)
    return checks.conv.laid_out(gated.view(*x.shape[:2], *gated.shape[1:]), x, weight, geometry)


def _is_dense(images: Tensor) -> bool:
    return images.is_contiguous() or images.is_contiguous(memory_format=torch.channels_last)


def _pass(source: Tensor, target: Tensor, gates: Tensor, bias: Tensor | None, images: int) -> None:
    backends.native.gate_channels(source, target, gates, bias, images, last=not source.is_contiguous())


def _triton_gated_conv2d(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    out = checks.conv.empty_result(x, weight, Geometry(*rest[-5:]))
    return backends.triton.of("gated_conv2d", products=True)(x, weight, *rest, out=out)


def _vendor_gated_conv2d(x: Tensor, weight: Tensor, gates: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    geometry = Geometry(*rest)
    images = x.flatten(0, 1)
    if geometry.input_size is not None:
        gated = _vendor_gate(images, x.shape[1], gates, None, in_place=False)
        y = checks.conv.convolve(gated, weight, None, geometry)
    else:
        y = checks.conv.convolve(images, weight, None, geometry)
        y = _vendor_gate(y, x.shape[1], gates, bias, in_place=True)
    return checks.conv.laid_out(y.unflatten(0, x.shape[:2]), x, weight, geometry)


def _vendor_gate(images: Tensor, each: int, gates: Tensor, bias: Tensor | None, in_place: bool) -> Tensor:
    """The channels of images [V * each, C, H, W] times gates [V, C], in whichever layout they are."""
    channels, area = images.shape[1], images.shape[2] * images.shape[3]
    last = not images.is_contiguous() and images.is_contiguous(memory_format=torch.channels_last)
    if not last:
        images = images.contiguous()
    seen = (images.permute(0, 2, 3, 1) if last else images).unflatten(0, (len(gates), each))
    gated = backends.vendor.gate_channels(seen, gates, bias, channels, 1 if last else area, in_place).flatten(0, 1)
    return gated.permute(0, 3, 1, 2) if last else gated


def _reference(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return checks.conv.laid_out(reference.gated_conv2d(x, weight, *rest), x, weight, Geometry(*rest[-5:]))


_op.implement(
    kernels=("gate_channels",),
    triton=_triton_gated_conv2d,
    vendor=_vendor_gated_conv2d,
    native=_native_gated_conv2d,
    reference=_reference,
)
