"""masked_conv2d: one convolution by many variants of its weight, each with its own packed mask of ablated elements."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from cad_fast.ops import backends, checks, image_rows, layout, reference
from cad_fast.ops.checks.conv import Geometry
from cad_fast.ops.define import define
from cad_fast.ops.registry import OPS
from cad_fast.ops.unpack_bits import unpack_bits

SMALL = {torch.float32: (64, 1 << 17), torch.bfloat16: (16, 1 << 15)}
"""Where the native product runs rather than torch's convolution: a variant has at most the first number of positions,
or at most 256 of them and at most the second number of patch elements."""
# Measured on Zen 4 (AVX-512), 16 variants of one image, 48 to 1280 channels, time of the product by that of torch's
# convolution variant by variant. fp32: 0.3 to 0.9 up to 64 positions; at 256 it depends on the patches, 0.6 to 1.0 with
# less than 2**17 elements, 1.1 to 1.6 above. bf16, which the product computes in fp32: 0.1 to 1.1 with 16 positions or
# less than 2**15 elements, 1.1 to 3 above.

PATCHES_BYTES = 16 << 20
"""Memory for the patches of the native product; the variants are divided accordingly."""


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    words: Tensor,
    bias: Tensor | None = None,
    factors: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    input_size: Sequence[int] | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Convolve each variant's images with its own weight: y_v = conv2d(x_v, weight o M_v) + bias.

    M_v is factors[v] where variant v ablates the weight's element and 1 elsewhere; factor 0 gives exact zeros, whatever
    the element was. Differentiable in x, weight and bias (the gradient by the weight is slow).

    Args:
        x: [V, R, C, H, W], float32, bfloat16 or float16; any strides.
        weight: [N, C / groups, kh, kw], dtype of x; any strides.
        words: [V, N, ceil(C / groups * kh * kw / 32)], int32: bit i of word j is element 32 * j + i of the filter in
            the order (channel, row, column), set if ablated; bits behind the last element are ignored.
        bias: [N], dtype of x, or None.
        factors: [V], float32, what variant v multiplies its ablated elements by, or None for 0. Rounded to x's dtype.
        stride: as for torch's conv2d, an int or two of them; so are the next ones.
        padding: rows and columns of zeros around the images.
        dilation: the distance between neighbouring elements of the kernel on the image.
        groups: how many groups the channels fall into, an int.
        input_size: (H, W) asks for the transposed product, as in the gradient by x: x is then [V, R, N, H', W'] and
            bias None.
        backend: "auto", "hopper", "triton", "vendor", "native" or "reference"; None means the one in
            force (`use_backend`).

    Returns:
        [V, R, N, H', W'], or [V, R, C, H, W] if input_size is given; dtype of x, channels last where torch's conv2d
        would give that. No value depends on the other variants or on the number of threads.

    Raises:
        TypeError: an argument is no tensor or no int where one is needed, or a tensor has another dtype.
        ValueError: a shape, a device or a number does not fit; the message names it.
        RuntimeError: the backend asked for cannot run.

    Source: ablations of COAR (Shah et al., 2024), as CAD (arXiv 2412.02542) uses them, many in one pass.
    """
    return _op(x, weight, words, bias, factors, stride, padding, dilation, groups, input_size, backend)


@define("masked_conv2d", checks.conv.empty_of_arguments, direct=True)
def _op(
    x: Tensor,
    weight: Tensor,
    words: Tensor,
    bias: Tensor | None,
    factors: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    input_size: Sequence[int] | None,
) -> tuple[Any, ...]:
    geometry = checks.conv.geometry(stride, padding, dilation, groups, input_size)
    checks.conv.check_operands(x, weight, bias, geometry, 5)
    checks.tensor("words", words, (torch.int32,))
    wanted = [x.shape[0], weight.shape[0], checks.bits.words_for(math.prod(weight.shape[1:]))]
    if list(words.shape) != wanted:
        raise ValueError(
            f"words must have shape [V, N, ceil(C / groups * kh * kw / 32)] = {wanted}, got {list(words.shape)}"
        )
    if factors is not None:
        checks.tensor("factors", factors, (torch.float32,))
        if list(factors.shape) != [x.shape[0]]:
            raise ValueError(f"factors must have shape [{x.shape[0]}], got {list(factors.shape)}")
    for name, tensor in (("words", words), ("factors", factors)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} must be on {x.device} like x, got {tensor.device}")
    return x, weight, words, bias, factors, *geometry


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, words, _, factors, *geometry, backend = inputs
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight, words, factors)
    ctx.geometry, ctx.image_size, ctx.backend = Geometry(*geometry), list(x.shape[-2:]), backend


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, words, factors = ctx.saved_tensors
    for_x = for_weight = for_bias = None
    if ctx.needs_input_grad[0]:
        back = ctx.geometry.transposed(ctx.image_size if ctx.geometry.input_size is None else None)
        for_x = _op(grad, weight, words, None, factors, *back, ctx.backend)
    if ctx.needs_input_grad[1]:
        for_weight = _weight_gradient(grad, x, weight, words, factors, ctx.geometry)
    if ctx.needs_input_grad[3]:
        for_bias = grad.sum((0, 1, 3, 4))
    return for_x, for_weight, None, for_bias, *[None] * 7


def _weight_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, words: Tensor, factors: Tensor | None, geometry: Geometry
) -> Tensor:
    total = torch.zeros_like(weight)
    for v in range(x.shape[0]):
        gradient = checks.conv.weight_gradient(grad[v], x[v], weight, geometry)
        ablated = unpack_bits(words[v], math.prod(weight.shape[1:]), backend="auto").reshape(weight.shape)
        of_ablated = torch.zeros_like(gradient) if factors is None else gradient * factors[v].to(gradient.dtype)
        total = total + torch.where(ablated, of_ablated, gradient)
    return total


_op.custom_op.register_autograd(_backward, setup_context=_setup_context)


def _native_masked_conv2d(
    x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None, factors: Tensor | None, *geometry: Any
) -> Tensor:
    geometry = Geometry(*geometry)
    out = checks.conv.empty_result(x, weight, geometry)
    if out.numel() == 0:
        return out
    if image_rows.pays(x, weight, geometry):
        OPS["masked_conv2d"].ways["patches as rows of masked_linear"] += 1
        return checks.conv.laid_out(_by_rows(x, weight, words, bias, factors, geometry), x, weight, geometry)
    rounded = None if factors is None else factors.to(x.dtype).float()
    product = product_pays(x, weight, geometry)
    OPS["masked_conv2d"].ways["own product" if product else "torch's convolution, one variant at a time"] += 1
    if product:
        _by_product(x, weight.contiguous(), words.contiguous(), bias, rounded, geometry, out)
    else:
        _by_variant(x, weight.contiguous(), words.contiguous(), bias, rounded, geometry, out)
    return out


def product_pays(x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    if geometry.groups != 1 or geometry.input_size is not None:
        return False
    positions = x.shape[1] * math.prod(checks.conv.out_size(x.shape[-2:], weight, geometry))
    most_positions, most_elements = SMALL[x.dtype]
    elements = positions * math.prod(weight.shape[1:])
    return positions <= most_positions or (positions <= 256 and elements <= most_elements)


def _by_rows(
    x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None, factors: Tensor | None, geometry: Geometry
) -> Tensor:
    variants, images = x.shape[:2]
    linear = OPS["masked_linear"].implementations["native"]

    def product(rows: Tensor, part: slice) -> Tensor:
        own = slice(part.start // images, part.stop // images)
        of_variants = rows.reshape(own.stop - own.start, -1, rows.shape[-1])
        some_factors = None if factors is None else factors[own]
        transposed = geometry.input_size is not None
        return linear(of_variants, weight.flatten(1), words[own], bias, some_factors, transposed).flatten(0, 1)

    y = image_rows.multiply(x.flatten(0, 1), weight, geometry, images, product)
    return y.unflatten(0, (variants, images))


def _by_variant(
    x: Tensor,
    weight: Tensor,
    words: Tensor,
    bias: Tensor | None,
    factors: Tensor | None,
    geometry: Geometry,
    out: Tensor,
) -> None:
    """The convolution of torch, variant by variant, all through one buffer for the weight."""
    module = backends.native.module()
    ablated = torch.empty_like(weight)
    depth = math.prod(weight.shape[1:])
    of_variant = [0.0] * len(x) if factors is None else factors.tolist()
    for v, factor in enumerate(of_variant):
        module.masked_conv2d_weight(
            weight.data_ptr(),
            words[v].data_ptr(),
            ablated.data_ptr(),
            len(weight),
            depth,
            factor,
            weight.dtype == torch.bfloat16,
        )
        out[v].copy_(checks.conv.convolve(x[v], ablated, bias, geometry))


def _by_product(
    x: Tensor,
    weight: Tensor,
    words: Tensor,
    bias: Tensor | None,
    factors: Tensor | None,
    geometry: Geometry,
    out: Tensor,
) -> None:
    """The native product of masked weight and patches, in fp32 inside."""
    module = backends.native.module()
    bias = None if bias is None else bias.float().contiguous()
    (variants, images, rows, *size), kernel = out.shape, list(weight.shape[2:])
    depth, positions = math.prod(weight.shape[1:]), images * math.prod(size)
    width = module.masked_conv2d_panel_width(positions)
    padded_positions = -(-positions // width) * width
    chunk = min(variants, max(1, PATCHES_BYTES // (4 * depth * padded_positions)))
    patches = torch.empty(chunk * depth * padded_positions)
    in_place = out.dtype == torch.float32 and images == 1 and out.is_contiguous()
    products = out if in_place else torch.empty(chunk, rows, positions)
    for first in range(0, variants, chunk):
        part = slice(first, min(variants, first + chunk))
        padded = pad(
            x[part].float(), [geometry.padding[1], geometry.padding[1], geometry.padding[0], geometry.padding[0]]
        ).contiguous()
        module.masked_conv2d_patches(
            padded.data_ptr(),
            patches.data_ptr(),
            len(padded),
            padded.shape[1:],
            kernel,
            size,
            geometry.stride,
            geometry.dilation,
        )
        target = products[part] if in_place else products[: len(padded)]
        module.masked_conv2d(
            patches.data_ptr(),
            weight.data_ptr(),
            words[part].data_ptr(),
            0 if bias is None else bias.data_ptr(),
            0 if factors is None else factors[part].data_ptr(),
            target.data_ptr(),
            len(padded),
            rows,
            depth,
            positions,
            weight.dtype == torch.bfloat16,
        )
        if not in_place:
            out[part].copy_(target.view(len(padded), rows, images, *size).transpose(1, 2))


def _hopper_masked_conv2d(
    x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None, factors: Tensor | None, *rest: Any
) -> Tensor:
    geometry = Geometry(*rest)
    out = checks.conv.empty_result(x, weight, geometry)
    written, y = layout.images_channels_last(out)
    positions = x.shape[1] * math.prod(out.shape[-2:])
    tile = backends.hopper.tile_of(positions)
    runs = backends.hopper.Runs(None, positions, tile)
    arguments = layout.weight_channels_last(weight), layout.words_channels_last(words, weight), bias, factors, geometry
    backends.hopper.convolution_of_runs(x.movedim(-3, -1).flatten(0, 1), *arguments, runs, y.flatten(0, 1))
    return out if y is written else out.copy_(y.movedim(-1, -3))


def _vendor_masked_conv2d(
    x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None, factors: Tensor | None, *rest: Any
) -> Tensor:
    """The vendor's convolution, one variant after another."""
    geometry = Geometry(*rest)
    out = checks.conv.empty_result(x, weight, geometry)
    filters, channels, *kernel = weight.shape
    flat = layout.weight_channels_last(weight).flatten(1)
    for part, weights in backends.vendor.ablated_weights(flat, layout.words_channels_last(words, weight), factors):
        for v, ablated in zip(range(part.start, part.stop), weights, strict=True):
            masked = ablated.view(filters, *kernel, channels).permute(0, 3, 1, 2)
            out[v].copy_(checks.conv.convolve(x[v], masked, bias, geometry))
    return out


def _triton_masked_conv2d(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    out = checks.conv.empty_result(x, weight, Geometry(*rest[-5:]))
    return backends.triton.of("masked_conv2d", products=True)(x, weight, *rest, out=out)


def _reference(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    geometry = Geometry(*rest[-5:])
    return checks.conv.laid_out(reference.masked_conv2d(x, weight, *rest), x, weight, geometry)


_op.implement(
    hopper=_hopper_masked_conv2d,
    triton=_triton_masked_conv2d,
    vendor=_vendor_masked_conv2d,
    native=_native_masked_conv2d,
    reference=_reference,
)
