"""Calls the CUDA kernels made of Hopper's own instructions (wgmma, sm_90), and says why they cannot run."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from cad_fast.ops.backends import cuda
from cad_fast.ops.checks import conv, linear

CAPABILITY = (9, 0)
TYPES = (torch.bfloat16, torch.float16)
ALIGNMENT = 8  # elements of 16 bits in 16 bytes
CHANNELS = 64  # a step of the sum is of one element of the convolution's kernel


def why_not(op: str, args: tuple[Any, ...]) -> str | None:
    """Why the Hopper kernels cannot run an operator on these arguments; None if they can."""
    if reason := cuda.why_not(op, args):
        return reason
    x, weight = args[:2]
    if reason := unsupported_index(x.device.index):
        return reason
    return why_not_shapes(op, args)


def why_not_shapes(op: str, args: tuple[Any, ...]) -> str | None:
    """Why the Hopper kernels do not take tensors like these, on whatever device; None if they do."""
    x, weight = args[:2]
    if x.dtype not in TYPES:
        return f"the Hopper kernels compute bfloat16 and float16, a tensor is {x.dtype}"
    if op.endswith("conv2d"):
        groups, input_size = args[-2:]
        if groups != 1:
            return f"the Hopper kernels take one group of channels, there are {groups}"
        if input_size is not None:
            return "the Hopper kernels do not transpose convolutions"
        if x.shape[-3] % CHANNELS:
            return f"the Hopper kernels take a multiple of {CHANNELS} channels, x has {x.shape[-3]}"
        return None
    sizes = {"the weight's rows": weight.shape[1], "rows of x": x.shape[-1]}
    for name, size in sizes.items():
        if size % ALIGNMENT:
            return f"the Hopper kernels take rows of a multiple of {ALIGNMENT} elements, {name} have {size}"
    return None


def unsupported_index(index: int) -> str | None:
    """Why a device cannot run the kernels; None if it can."""
    capability = torch.cuda.get_device_capability(index)
    if capability == CAPABILITY:
        return None
    needed, given = (".".join(map(str, number)) for number in (CAPABILITY, capability))
    return f"the Hopper kernels need compute capability {needed}, {torch.cuda.get_device_name(index)} has {given}"


def masked_linear(
    x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None, factors: Tensor | None, transposed: bool
) -> Tensor:
    """See `cad_fast.ops.masked_linear`; the arguments are checked."""
    x, weight, words = aligned(x), aligned(weight), words.contiguous()
    bias, factors = linear.contiguous(bias), linear.contiguous(factors)
    n, k = weight.shape
    variants, rows, _ = x.shape
    y = torch.empty((variants, rows, k if transposed else n), dtype=x.dtype, device=x.device)
    pointers = [linear.address(tensor) for tensor in (x, weight, words, bias, factors, None, y)]
    sizes = (0, variants, rows, n, k, transposed, cuda.TYPES[x.dtype])
    cuda.on_device(x.device, lambda stream: cuda.load().call("wgmma_linear", *pointers, *sizes, stream))
    return y


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    words: Tensor,
    bias: Tensor | None,
    factors: Tensor | None,
    geometry: conv.Geometry,
    out: Tensor,
) -> Tensor:
    """See `cad_fast.ops.masked_conv2d`; the arguments are checked, the result is written to `out`.

    Args:
        weight: [N, kh, kw, C], contiguous.
        words: [V, N, ceil(kh * kw * C / 32)]: bits of the weight in this order.
    """
    if out.numel() == 0:
        return out
    images = aligned(x.movedim(-3, -1))
    written = out.movedim(-3, -1)
    y = written if written.is_contiguous() else torch.empty(written.shape, dtype=x.dtype, device=x.device)
    bias, factors = linear.contiguous(bias), linear.contiguous(factors)
    shape = (*images.shape[2:], *written.shape[2:], *weight.shape[1:3])
    sizes = [*shape, *geometry.stride, *geometry.padding, *geometry.dilation]
    counts = (0, x.shape[0], x.shape[1])
    operands = (images, weight, words, bias, factors, None, y)
    pointers = [linear.address(tensor) for tensor in operands]
    arguments = (*pointers, *counts, (ctypes.c_int64 * len(sizes))(*sizes), cuda.TYPES[x.dtype])
    cuda.on_device(x.device, lambda stream: cuda.load().call("wgmma_conv2d", *arguments, stream))
    return out if y is written else out.copy_(y.movedim(-1, -3))


def aligned(tensor: Tensor) -> Tensor:
    """The tensor, contiguous and from a multiple of 16 bytes on; a copy if it is not."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor
