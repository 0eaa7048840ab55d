"""Cases of the operators on convolutions and of those on bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cad_fast.ops import pack_bits, reference
from tests.ops import exact

from .correct_linear import FACTORS, factors_of
from .inputs import Random, edits
from .judging import Case

# Variants, images, channels, filters, size; then kernel, stride, padding, dilation, groups.
CONVOLUTIONS = (
    (16, 1, 320, 320, 16, 3, 1, 1, 1, 1),
    (5, 2, 33, 65, 9, 3, 1, 1, 1, 1),
    (3, 1, 128, 64, 17, 3, 2, 1, 1, 1),
    (16, 1, 640, 320, 8, 1, 1, 0, 1, 1),
    (2, 2, 64, 96, 13, 3, 1, 2, 2, 1),
    (3, 1, 48, 96, 11, 3, 1, 1, 1, 2),
    (17, 1, 96, 40, 8, 5, 2, 2, 1, 1),
    (2, 1, 320, 4, 64, 3, 1, 1, 1, 1),
    (2, 1, 4, 320, 64, 3, 1, 1, 1, 1),
    (1, 1, 1, 1, 5, 1, 1, 0, 1, 1),
    (3, 1, 1280, 1280, 8, 3, 1, 1, 1, 1),
)
TINY = ((3, 2, 6, 10, 7, 3, 1, 1, 1, 1), (2, 1, 4, 6, 9, 3, 2, 1, 1, 2))
Geometry = tuple[list[int], list[int], list[int], int]


def _sizes(random: Random, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Geometry, list[int]]:
    """Images, a weight, gradients of the output, the geometry, and the size of the images."""
    variants, images, channels, filters, size, kernel, stride, padding, dilation, groups = sizes
    per_filter = channels // groups
    out = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    x = random.normal(variants, images, channels, size, size)
    weight = random.normal(filters, per_filter, kernel, kernel, scale=(per_filter * kernel**2) ** -0.5)
    grad = random.normal(variants, images, filters, out, out)
    return x, weight, grad, ([stride] * 2, [padding] * 2, [dilation] * 2, groups), [size, size]


def _last(x: Tensor) -> Tensor:
    return x.movedim(-3, -1).contiguous().movedim(-1, -3)


def _cases(
    random: Random, dry: bool, op: str, arguments: Callable[..., tuple[Any, ...]], infinite: Callable[[], Any]
) -> Iterator[Case]:
    """Each convolution with bias, channels last, and backwards; then strided images and what is infinite."""
    judge = getattr(exact, op)
    for number, sizes in enumerate(TINY if dry else CONVOLUTIONS):
        variants, images, channels, filters, size, kernel, stride, _, dilation, groups = sizes
        case = f"{variants} x {images} images, {channels} to {filters}, size {size}, kernel {kernel}"
        case += f", stride {stride}" * (stride > 1) + f", dilation {dilation}" * (dilation > 1)
        case += f", {groups} groups" * (groups > 1)
        yield Case(case, partial(arguments, sizes, False, False), judge)
        yield Case(case + ", channels last", partial(arguments, sizes, True, False), judge)
        if channels * filters <= 320 * 640:  # the others take long in float64
            yield Case(case + ", transposed", partial(arguments, sizes, False, True), judge)
            yield Case(case + ", channels last, transposed", partial(arguments, sizes, True, True), judge)
        if number == 1:

            def strided(sizes: tuple[int, ...] = sizes) -> tuple[Any, ...]:
                x, *rest = arguments(sizes, False, False)
                return x.transpose(-1, -2).contiguous().transpose(-1, -2), *rest

            yield Case("strides", strided, judge)
            yield Case("infinite values removed", infinite, judge)


def masked_conv2d(random: Random, dry: bool) -> Iterator[Case]:
    def arguments(sizes: tuple[int, ...], last: bool, transposed: bool) -> tuple[Any, ...]:
        x, weight, grad, geometry, image = _sizes(random, sizes)
        words = random.words(len(x), len(weight), k=math.prod(weight.shape[1:]), fraction=0.3)
        x = grad if transposed else x
        x, weight = (_last(x), _last(weight)) if last else (x, weight)
        factors = factors_of(len(x), random) if last else None
        bias = None if transposed else random.normal(len(weight))
        return x, weight, words, bias, factors, *geometry, image if transposed else None

    def infinite() -> tuple[Any, ...]:
        x, weight, _, bias, _, *rest = arguments(TINY[0], False, False)
        removed = random.mask(*weight.shape, fraction=0.3)
        weight[removed] = float("inf")
        words = pack_bits(removed.flatten(1).cpu(), backend="reference").to(random.device)
        return x, weight, words.expand(len(x), -1, -1), bias, None, *rest

    yield from _cases(random, dry, "masked_conv2d", arguments, infinite)


def edited_conv2d(random: Random, dry: bool) -> Iterator[Case]:
    """A group of images per variant, and one without images or entries."""

    def arguments(sizes: tuple[int, ...], last: bool, transposed: bool) -> tuple[Any, ...]:
        x, weight, grad, geometry, image = _sizes(random, sizes)
        groups = [x.shape[1]] * len(x) + [0]
        x = (grad if transposed else x).flatten(0, 1)
        x, weight = (_last(x), _last(weight)) if last else (x, weight)
        values = FACTORS if last else (0.0,)
        entries = edits(groups, weight.numel(), random.device, values, without=[len(groups) - 1, 1])
        bias = None if transposed else random.normal(len(weight))
        return x, weight, *entries[:4], bias, *geometry, image if transposed else None

    def infinite() -> tuple[Any, ...]:
        x, weight, rows, offsets, indices, _, bias, *rest = arguments(TINY[0], False, False)
        count = int(offsets[1])
        indices = indices[:count].repeat(len(rows) - 1)
        weight.view(-1)[indices[:count]] = float("inf")
        zeros = torch.zeros(len(indices), device=random.device)
        return x, weight, rows, torch.arange(len(rows)) * count, indices, zeros, bias, *rest

    yield from _cases(random, dry, "edited_conv2d", arguments, infinite)


def gated_conv2d(random: Random, dry: bool) -> Iterator[Case]:
    def arguments(sizes: tuple[int, ...], last: bool, transposed: bool) -> tuple[Any, ...]:
        x, weight, grad, geometry, image = _sizes(random, sizes)
        gates = random.normal(len(x), len(weight))
        gates[random.mask(*gates.shape, fraction=0.3)] = 0
        x = grad if transposed else x
        x, weight = (_last(x), _last(weight)) if last else (x, weight)
        bias = None if transposed else random.normal(len(weight))
        return x, weight, gates, bias, *geometry, image if transposed else None

    def infinite() -> tuple[Any, ...]:
        x, weight, gates, *rest = arguments(TINY[0], False, False)
        weight[0] = float("inf")
        gates[:, 0] = 0
        return x, weight, gates, *rest

    yield from _cases(random, dry, "gated_conv2d", arguments, infinite)


def pack_bits_cases(random: Random, dry: bool) -> Iterator[Case]:
    for shape in ((7, 1), (3, 31), (2, 5, 64), (70, 1000), (2, 4097), (0, 33), (2, 0), (1, 10240, 320)):
        for dtype in (torch.bool, torch.uint8):
            make = partial(lambda shape, dtype: (random.mask(*shape, fraction=0.3).to(dtype),), shape, dtype)
            yield Case(f"{shape}, {dtype}", make, lambda mask: reference.pack_bits(mask.cpu()))
    yield Case("strides", lambda: (random.mask(9, 154)[:, ::2],), lambda mask: reference.pack_bits(mask.cpu()))


def unpack_bits_cases(random: Random, dry: bool) -> Iterator[Case]:
    for leading, n in (((7,), 1), ((3,), 31), ((2, 5), 64), ((70,), 1000), ((2,), 4097), ((0,), 33), ((2,), 0)):
        make = partial(lambda leading, n: (random.words(*leading, k=n, fraction=0.5), n), leading, n)
        yield Case(f"{leading}, n = {n}", make, lambda words, n: reference.unpack_bits(words.cpu(), n))
    strided = lambda: (random.words(9, k=320)[:, ::2], 150)  # noqa: E731
    yield Case("strides", strided, lambda words, n: reference.unpack_bits(words.cpu(), n))


def count_bits_cases(random: Random, dry: bool) -> Iterator[Case]:
    for leading, n in (((7,), 1), ((3, 4), 33), ((70,), 10000), ((2,), 300000), ((0,), 33), ((2,), 0)):
        make = partial(lambda leading, n: (random.words(*leading, k=n, fraction=0.5),), leading, n)
        yield Case(f"{leading}, n = {n}", make, lambda words: reference.count_bits(words.cpu()))
    yield Case("strides", lambda: (random.words(9, k=320).t(),), lambda words: reference.count_bits(words.cpu()))


def seeded_mask_cases(random: Random, dry: bool) -> Iterator[Case]:
    device = str(random.device)
    sizes = ((7, 0, 3, 77, 0.25), (2**64 - 1, 2**32 - 2, 2, 161, 0.5), (0, 5, 2, 33, 0.0), (3, 0, 2, 64, 1.0))
    for arguments in (*sizes, (1, 0, 0, 33, 0.5), (11, 2, 16, 40960, 0.05), (5, 0, 70000, 33, 0.3))[: 4 if dry else 7]:
        yield Case(
            f"seed, first, variants, n, fraction = {arguments}",
            partial(lambda arguments: arguments, arguments),
            _seeded_mask,
            _SeededMask(device),
        )


class _SeededMask:
    """Runs the operator for a device: its arguments are numbers."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __call__(self, op: str, arguments: Any, backend: str | None) -> list[Tensor]:
        from cad_fast import ops

        return [ops.seeded_mask(*arguments, device=self.device, backend=backend)]


def _seeded_mask(seed: int, first: int, variants: int, n: int, fraction: float) -> Tensor:
    from cad_fast import ops

    # The reference goes variant by variant; with many variants the native kernel, which the tests hold against it.
    backend = "reference" if variants < 100 else None
    return ops.seeded_mask(seed, first, variants, n, fraction, device="cpu", backend=backend)


def gram_bits_cases(random: Random, dry: bool) -> Iterator[Case]:
    for m, n in ((1, 31), (33, 1000), (0, 33)):
        make = partial(lambda m, n: (random.words(m, k=n, fraction=0.5),), m, n)
        yield Case(f"{m} rows of {n}", make, lambda words: reference.gram_bits(words.cpu()))


def bits_linear_cases(random: Random, dry: bool) -> Iterator[Case]:
    """Of whole numbers, whose sums are exact."""

    def arguments(t: int, m: int, n: int, transposed: bool) -> tuple[Any, ...]:
        x = random.normal(t, m if transposed else n, scale=4.0).double().round()
        return x, random.words(m, k=n, fraction=0.5), n, transposed

    for transposed in (False, True):
        for sizes in ((3, 5, 215), (1, 33, 64)):
            case = f"{sizes}" + ", transposed" * transposed
            yield Case(case, partial(arguments, *sizes, transposed), _bits_linear)


def _bits_linear(x: Tensor, words: Tensor, n: int, transposed: bool) -> Tensor:
    return reference.bits_linear(x.cpu(), words.cpu(), n, transposed)
