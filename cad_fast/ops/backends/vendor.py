"""Weights of variants are written out by a small kernel, and the vendor's library multiplies them, through torch.

To write a weight costs two bytes for each element and variant. With thousands of rows for each variant that is little
beside the product, and no product is faster than the vendor's. On CPUs the library is oneDNN or MKL, and one weight at
a time is written, into memory that stays in the caches.
"""

import contextlib
import importlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cad_fast.ops.backends import native, triton
from cad_fast.ops.checks import linear

TYPES = (torch.bfloat16, torch.float16)
LINEAR = ("masked_linear", "gated_linear")
ALIGNMENT = 8
"""Elements in rows of which cuBLAS adds a bias before it rounds."""
BUFFER_BYTES = 128 << 20
"""Of weights written at a time; of one weight if it has more."""
ON_CPUS = ("masked_linear", "edited_linear", "masked_conv2d")
CPU_BUFFER_BYTES = 1 << 20
"""The same on CPUs: what stays in the L2 cache."""

_lock = threading.Lock()
_inside = 0
_before: tuple[bool, bool] = (True, True)


def why_not(op: str, args: tuple[Any, ...]) -> str | None:
    """Why weights cannot be written out for the vendor's product; None if they can."""
    if on_the_cpu(args):
        if op not in ON_CPUS:
            return f"the vendor's products are used on CPUs for {', '.join(ON_CPUS)}"
        return native.why_not_run(op, args)
    if op == "edited_linear":
        return "the vendor's products of edited weights are used on CPUs alone"
    if reason := triton.why_not(op, args):
        return reason
    x = args[0]
    if x.dtype not in TYPES:
        return f"the vendor's products are used for bfloat16 and float16, a tensor is {x.dtype}"
    if op in LINEAR and rounds_twice(args) and not hasattr(torch.ops.aten.mm, "dtype"):
        return "without products in float32 (torch 2.8) the vendor's are rounded before a bias is added, in such sizes"
    return None


def on_the_cpu(args: tuple[Any, ...]) -> bool:
    """Whether the native kernels write the weights; Triton's do on a GPU, and in their interpreter."""
    device = triton.device_of(args)
    return device is not None and device.type == "cpu" and not ("triton" in sys.modules and triton.interpreted())


def rounds_twice(args: tuple[Any, ...]) -> bool:
    """Whether there is a bias, and rows of sizes with which torch adds it to a product that is rounded."""
    weight, bias = args[1], args[3]
    return bias is not None and any(size % ALIGNMENT for size in weight.shape)


@contextlib.contextmanager
def full_sums() -> Iterator[None]:
    """Have torch's products add in float32 alone, parts of sums too; else torch lets cuBLAS add some in 16 bits."""
    global _inside, _before
    settings = torch.backends.cuda.matmul
    with _lock:
        if _inside == 0:
            _before = (
                settings.allow_bf16_reduced_precision_reduction,
                settings.allow_fp16_reduced_precision_reduction,
            )
            settings.allow_bf16_reduced_precision_reduction = False
            settings.allow_fp16_reduced_precision_reduction = False
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                (
                    settings.allow_bf16_reduced_precision_reduction,
                    settings.allow_fp16_reduced_precision_reduction,
                ) = _before


def ablated_weights(weight: Tensor, words: Tensor, factors: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """The weights [variants, n, k] of some variants after another, in memory that the next ones take over.

    Args:
        weight: [n, k].
        words: [V, n, ceil(k / 32)]: bits of the elements that are multiplied by their variant's factor.
        factors: [V], float32, or None for 0.
    """
    words = words.contiguous()
    cpu = on_the_cpu((weight,))
    run = _write_on_the_cpu if cpu else importlib.import_module("cad_fast.kernels.ablated_weights").run
    together = max(1, (CPU_BUFFER_BYTES if cpu else BUFFER_BYTES) // max(1, weight.numel() * weight.element_size()))
    buffer = torch.empty((min(together, len(words)), *weight.shape), dtype=weight.dtype, device=weight.device)
    for first in range(0, len(words), together):
        part = slice(first, min(first + together, len(words)))
        written = buffer[: part.stop - part.start]
        with torch.cuda.device(weight.device) if weight.is_cuda else contextlib.nullcontext():
            run(weight, words[part], None if factors is None else factors[part].contiguous(), written)
        yield part, written


def _write_on_the_cpu(weight: Tensor, words: Tensor, factors: Tensor | None, written: Tensor) -> None:
    """Write the weights [variants, n, k] of variants with these words and factors."""
    weight, write = weight.contiguous(), native.module().masked_conv2d_weight
    n, k, bfloat16 = *weight.shape, weight.dtype == torch.bfloat16
    of_variant = [0.0] * len(words) if factors is None else factors.to(weight.dtype).tolist()
    for own, factor, target in zip(words, of_variant, written, strict=True):
        write(weight.data_ptr(), own.data_ptr(), target.data_ptr(), n, k, factor, bfloat16)


def masked_linear(
    x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None, factors: Tensor | None, transposed: bool
) -> Tensor:
    """See `cad_fast.ops.masked_linear`; the arguments are checked."""
    y = torch.empty((*x.shape[:2], weight.shape[1 if transposed else 0]), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    with full_sums():
        for part, weights in ablated_weights(weight, words, factors):
            operand = weights if transposed else weights.mT
            if bias is None:
                torch.bmm(x[part], operand, out=y[part])
                continue
            for v, of_variant in zip(range(part.start, part.stop), operand, strict=True):
                multiply_and_add(x[v], of_variant, bias, y[v])  # a batch would round before it adds the bias
    return y


def edited_linear(
    x: Tensor,
    weight: Tensor,
    rows: Tensor,
    offsets: Tensor,
    indices: Tensor,
    factors: Tensor,
    bias: Tensor | None,
    transposed: bool,
) -> Tensor:
    """See `cad_fast.ops.edited_linear`; the arguments are checked, the values of the edit too."""
    y = torch.empty((x.shape[0], weight.shape[1 if transposed else 0]), dtype=x.dtype)
    if y.numel() == 0:
        return y
    for group, edited in edited_weights(weight, rows, offsets, indices, factors):
        operand = edited if transposed else edited.mT
        if bias is None:
            torch.mm(x[group], operand, out=y[group])
        else:
            multiply_and_add(x[group], operand, bias, y[group])
    return y


def edited_weights(
    weight: Tensor, rows: Tensor, offsets: Tensor, indices: Tensor, factors: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """The rows of each group that has some, and its weight; neighbours without an edit are taken together.

    All weights are one copy, in which the native kernel changes what an edit changes, and puts it back.
    """
    weight, indices, factors = weight.contiguous(), indices.contiguous(), factors.contiguous()
    edit, bfloat16 = native.module().edit_weight, weight.dtype == torch.bfloat16
    copy: Tensor | None = None
    for group, entries in _parts(rows.tolist(), offsets.tolist()):
        if entries.start == entries.stop:
            yield group, weight
            continue
        copy = torch.empty_like(weight).copy_(weight) if copy is None else copy
        place = (weight.data_ptr(), copy.data_ptr(), indices[entries].data_ptr())
        edit(*place, factors[entries].data_ptr(), entries.stop - entries.start, bfloat16)
        yield group, copy
        edit(*place, 0, entries.stop - entries.start, bfloat16)


def _parts(bounds: list[int], edits: list[int]) -> Iterator[tuple[slice, slice]]:
    """The rows and entries of each group that has rows; neighbours without an edit are taken together."""
    plain_from = None
    for group in range(len(bounds) - 1):
        begin, end = bounds[group], bounds[group + 1]
        if begin == end:
            continue
        if edits[group] == edits[group + 1]:
            plain_from = begin if plain_from is None else plain_from
            continue
        if plain_from is not None:
            yield slice(plain_from, begin), slice(0, 0)
            plain_from = None
        yield slice(begin, end), slice(edits[group], edits[group + 1])
    if plain_from is not None:
        yield slice(plain_from, bounds[-1]), slice(0, 0)


def multiply_and_add(x: Tensor, operand: Tensor, bias: Tensor, out: Tensor) -> None:
    """Write x @ operand + bias, rounded once.

    cuBLAS adds a bias to the float32 sums where rows have a multiple of 8 elements. Elsewhere torch rounds the product
    before it adds the bias (seen on an H200, torch 2.11), so the product is taken in float32.

    Args:
        x: [rows, k].
        operand: [k, n].
        bias: [n].
        out: [rows, n].
    """
    if x.shape[1] % ALIGNMENT == 0 and operand.shape[1] % ALIGNMENT == 0:
        torch.addmm(bias, x, operand, out=out)
    elif x.is_cuda:
        out.copy_(torch.mm(x, operand, out_dtype=torch.float32).add_(bias))
    else:
        out.copy_((x.float() @ operand.float()).add_(bias))


def gate_channels(
    source: Tensor, gates: Tensor, bias: Tensor | None, channels: int, per_channel: int, in_place: bool = False
) -> Tensor:
    """Multiply channels by their gates and add the bias, in one pass; what a gate of 0 meets is not read.

    Args:
        source: [V, ...], contiguous.
        gates: [V, G], each of channels / G neighbouring channels.
        bias: [channels], or None.
        channels: how many there are.
        per_channel: how many entries of a channel lie side by side.
        in_place: whether to write to `source`.
    """
    run = importlib.import_module("cad_fast.kernels.gate_channels").run
    target = source if in_place else torch.empty_like(source)
    with torch.cuda.device(source.device) if source.is_cuda else contextlib.nullcontext():
        return run(source, gates, linear.contiguous(bias), target, channels, per_channel)


def gated_linear(x: Tensor, weight: Tensor, gates: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    """See `cad_fast.ops.gated_linear`; the arguments are checked."""
    columns = weight.shape[1]
    with full_sums():
        if transposed:
            y = (x.flatten(0, 1) @ weight).view(*x.shape[:2], columns)
            return gate_channels(y, gates, None, columns, 1, in_place=True)
        gated = gate_channels(x.contiguous(), gates, None, columns, 1)
        if bias is None:
            return torch.nn.functional.linear(gated, weight)
        y = torch.empty((*x.shape[:2], weight.shape[0]), dtype=x.dtype, device=x.device)
        multiply_and_add(gated.flatten(0, 1), weight.mT, bias, y.flatten(0, 1))
        return y
