"""Calls that launch each Triton kernel, for compilation ahead of time: sizes of SD 1.4's layers, on the CPU.

Those with a product have two ways, of which `other` is the second: transposed, with factors, without a bias.
"""

import torch
from torch import Tensor

from cad_fast.kernels import (
    ablated_weights,
    count_bits,
    edited_conv2d,
    edited_linear,
    gate_channels,
    gated_conv2d,
    gated_linear,
    masked_conv2d,
    masked_linear,
    masked_linear_scores,
    pack_bits,
    seeded_mask,
    unpack_bits,
)

CPU = torch.device("cpu")
SAME = ([1, 1], [1, 1], [1, 1], 1)


def launch_masked_linear(rows: int, dtype: torch.dtype, precision: str, other: bool) -> None:
    weight, words = torch.zeros(1280, 640, dtype=dtype), torch.zeros(4, 1280, 20).int()
    x = torch.zeros(4, rows, 1280 if other else 640, dtype=dtype)
    bias, factors = (None, torch.zeros(4)) if other else (torch.zeros(1280, dtype=dtype), None)
    masked_linear.run(x, weight, words, bias, factors, other, precision=precision)


def _edit(groups: int) -> tuple[Tensor, Tensor, Tensor]:
    indices = torch.arange(0, 6400, 64)
    return torch.arange(groups + 1) * 100, indices.repeat(groups), torch.full((100 * groups,), 0.5)


def launch_edited_linear(rows: int, dtype: torch.dtype, precision: str, other: bool) -> None:
    weight, bias = torch.zeros(1280, 640, dtype=dtype), torch.zeros(1280, dtype=dtype)
    x = torch.zeros(2 * rows, 1280 if other else 640, dtype=dtype)
    bounds = torch.tensor([0, rows, 2 * rows])
    edited_linear.run(x, weight, bounds, *_edit(2), None if other else bias, other, precision=precision)


def launch_masked_conv2d(rows: int, dtype: torch.dtype, precision: str, other: bool, channels: int = 336) -> None:
    """Rows are positions: images of rows / 4 by 4. 336 channels are no multiple of 32, so they come in any order."""
    weight, words = torch.zeros(640, channels, 3, 3, dtype=dtype), torch.zeros(4, 640, -(-channels * 9 // 32)).int()
    x, out = (
        torch.zeros(4, 1, size, rows // 4, 4, dtype=dtype) for size in ((640, channels), (channels, 640))[not other]
    )
    bias, factors = (None, torch.zeros(4)) if other else (torch.zeros(640, dtype=dtype), None)
    size = [rows // 4, 4] if other else None
    masked_conv2d.run(x, weight, words, bias, factors, *SAME, size, out=out, precision=precision)


def launch_edited_conv2d(rows: int, dtype: torch.dtype, precision: str, other: bool) -> None:
    weight, bias = torch.zeros(640, 320, 3, 3, dtype=dtype), torch.zeros(640, dtype=dtype)
    shapes = [(4, channels, rows // 4, 4) for channels in ((640, 320) if other else (320, 640))]
    x, out = (torch.zeros(shape, dtype=dtype) for shape in shapes)
    size, bias = ([rows // 4, 4], None) if other else (None, bias)
    bounds = torch.tensor([0, 1, 4])
    edited_conv2d.run(x, weight, bounds, *_edit(2), bias, *SAME, size, out=out, precision=precision)


def launch_gated_linear(rows: int, dtype: torch.dtype, precision: str, other: bool) -> None:
    weight, gates = torch.zeros(1280, 640, dtype=dtype), torch.zeros(4, 16 if other else 640, dtype=dtype)
    x = torch.zeros(4, rows, 1280 if other else 640, dtype=dtype)
    bias = None if other else torch.zeros(1280, dtype=dtype)
    gated_linear.run(x, weight, gates, bias, other, precision=precision)


def launch_gated_conv2d(rows: int, dtype: torch.dtype, precision: str, other: bool) -> None:
    """As launch_masked_conv2d."""
    weight, gates = torch.zeros(640, 336, 3, 3, dtype=dtype), torch.zeros(4, 640, dtype=dtype)
    x, out = (
        torch.zeros(4, 1, channels, rows // 4, 4, dtype=dtype) for channels in ((640, 336), (336, 640))[not other]
    )
    size, bias = ([rows // 4, 4], None) if other else (None, torch.zeros(640, dtype=dtype))
    gated_conv2d.run(x, weight, gates, bias, *SAME, size, out=out, precision=precision)


def launch_masked_conv2d_last(rows: int, dtype: torch.dtype, precision: str, other: bool) -> None:
    """Channels by 64, in the order of `channels_last`."""
    launch_masked_conv2d(rows, dtype, precision, other, 320)


def launch_gated_conv2d_last(rows: int, dtype: torch.dtype, precision: str, other: bool) -> None:
    """As launch_masked_conv2d_last; the other way without a bias, as transposed they go in any order."""
    weight, gates = torch.zeros(640, 320, 3, 3, dtype=dtype), torch.zeros(4, 640, dtype=dtype)
    x, out = (torch.zeros(4, 1, size, rows // 4, 4, dtype=dtype) for size in (320, 640))
    bias = None if other else torch.zeros(640, dtype=dtype)
    gated_conv2d.run(x, weight, gates, bias, *SAME, None, out=out, precision=precision)


PRODUCTS = {
    "gated_linear": launch_gated_linear,
    "gated_conv2d": launch_gated_conv2d,
    "masked_linear": launch_masked_linear,
    "edited_linear": launch_edited_linear,
    "masked_conv2d": launch_masked_conv2d,
    "masked_conv2d_last": launch_masked_conv2d_last,
    "gated_conv2d_last": launch_gated_conv2d_last,
    "edited_conv2d": launch_edited_conv2d,
}
"""Kernels with a product, by operator: called with rows per variant, dtype, precision, and which of two ways."""


def launch_masked_linear_scores(dtype: torch.dtype, precision: str) -> None:
    grad, x = torch.zeros(4, 77, 1280, dtype=dtype), torch.zeros(4, 77, 640, dtype=dtype)
    sums = torch.zeros(2, 1280, 640)
    weight, words = torch.zeros(1280, 640, dtype=dtype), torch.zeros(4, 1280, 20).int()
    masked_linear_scores.run(grad, x, weight, words, *sums, precision=precision)


WITHOUT_PRODUCT = {
    "ablated_weights": lambda: ablated_weights.run(
        torch.zeros(1280, 640, dtype=torch.bfloat16),
        torch.zeros(4, 1280, 20).int(),
        torch.zeros(4),
        torch.zeros(4, 1280, 640, dtype=torch.bfloat16),
    ),
    "gate_channels": lambda: gate_channels.run(
        *(torch.zeros(shape, dtype=torch.bfloat16) for shape in ((4, 2, 320, 64), (4, 320), (320,), (4, 2, 320, 64))),
        320,
        64,
    ),
    "seeded_mask": lambda: seeded_mask.run(1 << 40, 3, 5, 10**6, 2**31, CPU),
    "pack_bits": lambda: pack_bits.run(torch.zeros(3, 1000, dtype=torch.bool)),
    "unpack_bits": lambda: unpack_bits.run(torch.zeros(3, 32).int(), 1000),
    "count_bits": lambda: count_bits.run(torch.zeros(3, 1000).int()),
}
"""Kernels on packed bits, by operator; and those beside the vendor's products, by their own names."""


def launch_of_size(op: str, size: int, transposed: bool, seed: int) -> None:
    """All sizes alike. Triton compiles arguments that are 1, or not divisible by 16, in ways of their own."""
    weight, bias, factors = torch.zeros(size, size), torch.zeros(size), torch.zeros(size)
    filters, images = weight[..., None, None], torch.zeros(size, size, 1, 1)
    words = torch.zeros(size, size, (size + 31) // 32).int()
    x, of_images = torch.zeros(size, size, size), torch.zeros(size, size, size, 1, 1)
    edit = torch.arange(size + 1), torch.arange(size + 1), torch.zeros(size).long(), torch.ones(size)
    how = ([1, 1], [0, 0], [1, 1], 1, [1, 1] if transposed else None)
    given = None if transposed else bias
    calls = {
        "masked_linear": lambda: masked_linear.run(x, weight, words, given, factors, transposed),
        "edited_linear": lambda: edited_linear.run(weight, weight, *edit, given, transposed),
        "masked_conv2d": lambda: masked_conv2d.run(of_images, filters, words, given, factors, *how, out=of_images),
        "edited_conv2d": lambda: edited_conv2d.run(images, filters, *edit, given, *how, out=images),
        "gated_linear": lambda: gated_linear.run(x, weight, weight, given, transposed),
        "gated_conv2d": lambda: gated_conv2d.run(of_images, filters, weight, given, *how, out=of_images),
        "masked_linear_scores": lambda: masked_linear_scores.run(x, x, weight, words, weight, weight),
        "seeded_mask": lambda: seeded_mask.run(seed, size, size, size, min(seed, 2**32), CPU),
        "pack_bits": lambda: pack_bits.run(weight.bool()),
        "unpack_bits": lambda: unpack_bits.run(words, size),
        "count_bits": lambda: count_bits.run(words),
        "ablated_weights": lambda: ablated_weights.run(weight, words, factors, x),
        "gate_channels": lambda: gate_channels.run(x, weight, bias, x, size, 1),
    }
    calls[op]()
