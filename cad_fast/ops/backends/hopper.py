"""Calls the CUDA kernels made of Hopper's own instructions (wgmma, sm_90), and says why they cannot run."""

import ctypes
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cad_fast.ops.backends import cuda
from cad_fast.ops.checks import conv, linear
from cad_fast.remembered import remembered

CAPABILITY = (9, 0)
TYPES = (torch.bfloat16, torch.float16)
ALIGNMENT = 8  # elements of 16 bits in 16 bytes
CHANNELS = 64  # a step of the sum is of one element of the convolution's kernel
REACH, STRIDE = 127, 8  # what the hardware describes images by


def why_not(op: str, args: tuple[Any, ...]) -> str | None:
    """Why the Hopper kernels cannot run an operator on these arguments; None if they can."""
    if reason := cuda.why_not(op, args):
        return reason
    if reason := unsupported_index(args[0].device.index):
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
        stride, padding, dilation = args[-5:-2]
        reach = max((size - 1) * step for size, step in zip(weight.shape[2:], dilation, strict=True))
        if reach > REACH or max(padding) > REACH or max(stride) > STRIDE:
            given = f"strides {stride}, paddings {padding}, kernels {list(weight.shape[2:])}, dilations {dilation}"
            return (
                f"the Hopper kernels take strides up to {STRIDE}, paddings and kernels up to {REACH}, given are {given}"
            )
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


class Runs(NamedTuple):
    """How rows of x are divided among masks, for the kernels.

    table: [blocks, segments, 3], int32: the mask, the first row and the number of rows of each run; None: one mask
    after the other has `rows` rows. rows: of each group, about. tile: rows of a run at most, and segments of a block.
    """

    table: Tensor | None
    rows: int
    tile: ctypes.Array

    @property
    def nothing(self) -> bool:
        """Whether there is nothing to compute."""
        return self.table is not None and len(self.table) == 0


@functools.lru_cache(maxsize=4096)
def tile_of(rows: int) -> ctypes.Array:
    """The tile that groups of about so many rows are computed with: rows of a run, and runs of a block."""
    sizes = (ctypes.c_int64 * 2)()
    cuda.load().function("wide_tile")(rows, sizes)
    return sizes


def runs_of(bounds: Sequence[int], masks: Sequence[int], device: torch.device) -> Runs:
    """The runs of groups of rows.

    Args:
        bounds: [groups + 1]: group g has the rows from bounds[g] to bounds[g + 1].
        masks: [groups]: which mask is a group's, or -1 where none of its rows are to be computed.
        device: where the table is to lie.
    """
    wanted = [g for g, mask in enumerate(masks) if mask >= 0 and bounds[g + 1] > bounds[g]]
    rows = max(1, sum(bounds[g + 1] - bounds[g] for g in wanted) // max(1, len(wanted)))
    tile = tile_of(rows)
    most, segments = tile
    key = (most, segments, tuple(bounds), tuple(masks))

    def make() -> Tensor:
        runs = [
            (masks[g], first, min(most, bounds[g + 1] - first))
            for g in wanted
            for first in range(bounds[g], bounds[g + 1], most)
        ]
        runs += [(0, 0, 0)] * (-len(runs) % segments)
        return torch.tensor(runs, dtype=torch.int32, device=device).view(-1, segments, 3)

    return Runs(remembered("runs of rows", [], key, make, device), rows, tile)


def masked_linear(
    x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None, factors: Tensor | None, transposed: bool
) -> Tensor:
    """See `cad_fast.ops.masked_linear`; the arguments are checked."""
    variants, rows, _ = x.shape
    outer = weight.shape[1 if transposed else 0]
    y = torch.empty((variants, rows, outer), dtype=x.dtype, device=x.device)
    runs = Runs(None, rows, tile_of(rows))
    linear_of_runs(x.flatten(0, 1), weight, words, bias, factors, transposed, runs, y)
    return y


def linear_of_runs(
    x: Tensor,
    weight: Tensor,
    words: Tensor,
    bias: Tensor | None,
    factors: Tensor | None,
    transposed: bool,
    runs: Runs,
    y: Tensor,
) -> None:
    """Write the rows of y, contiguous, that the runs name, each with the weight under its mask.

    Args:
        x: [rows, k], or [rows, n] if `transposed`.
        weight: [n, k].
        words: [masks, n, ceil(k / 32)]. Without a table of runs mask i is that of rows i * runs.rows and on.
        bias: [n], or None.
        factors: [masks], float32, or None for 0.
        transposed: whether to multiply by the weight rather than by its transpose.
        runs: which rows are under which mask.
        y: [rows, n], or [rows, k] if `transposed`.
    """
    if runs.nothing:
        return
    x, weight, words = aligned(x), aligned(weight), even(words)
    bias, factors = linear.contiguous(bias), linear.contiguous(factors)
    pointers = [linear.address(tensor) for tensor in (x, weight, words, bias, factors, runs.table, y)]
    blocks = 0 if runs.table is None else len(runs.table)
    counts = (blocks, len(words), runs.rows, len(x), runs.tile)
    shape = (*weight.shape, transposed, cuda.TYPES[x.dtype])
    cuda.on_device(x.device, lambda stream: cuda.load().call("wgmma_linear", *pointers, *counts, *shape, stream))


def convolution_of_runs(
    x: Tensor,
    weight: Tensor,
    words: Tensor,
    bias: Tensor | None,
    factors: Tensor | None,
    geometry: conv.Geometry,
    runs: Runs,
    y: Tensor,
) -> None:
    """Write the positions of images y that the runs name, each with the weight under its mask.

    Args:
        x: [images, height, width, channels].
        weight: [N, kh, kw, C], contiguous.
        words: [masks, N, ceil(kh * kw * C / 32)]: bits of the weight in this order. Without a table of runs mask i is
            that of positions i * runs.rows and on.
        bias: [N], or None.
        factors: [masks], float32, or None for 0.
        geometry: of the convolution.
        runs: which positions of y are under which mask.
        y: [images, height, width, N], contiguous.
    """
    if runs.nothing:
        return
    x, weight, words = aligned(x), aligned(weight), even(words)
    bias, factors = linear.contiguous(bias), linear.contiguous(factors)
    sizes = [*x.shape[1:], *y.shape[1:], *weight.shape[1:3], *geometry.stride, *geometry.padding, *geometry.dilation]
    operands = (x, weight, words, bias, factors, runs.table, y)
    blocks = 0 if runs.table is None else len(runs.table)
    counts = (blocks, len(words), runs.rows, len(x), runs.tile)
    shape = ((ctypes.c_int64 * len(sizes))(*sizes), cuda.TYPES[x.dtype])
    arguments = (*[linear.address(tensor) for tensor in operands], *counts, *shape)
    cuda.on_device(x.device, lambda stream: cuda.load().call("wgmma_conv2d", *arguments, stream))


def aligned(tensor: Tensor) -> Tensor:
    """The tensor, contiguous and from a multiple of 16 bytes on; a copy if it is not."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


def even(words: Tensor) -> Tensor:
    """The words with an even number in a row, the last of them 0 if it was added, contiguous and aligned."""
    if words.shape[-1] % 2:
        return remembered("words of even rows", [words], (), lambda: torch.nn.functional.pad(words, (0, 1)))
    return aligned(words)
