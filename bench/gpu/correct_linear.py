"""Cases of the operators on linear layers: arguments, and the exact result for them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cad_fast.ops import pack_bits
from tests.ops import exact

from .inputs import Random, edits
from .judging import Case, Sums

# Variants, rows, n, k. Layers as models have them and odd ones; k that 8 or 32 do not divide; few variants and more
# than a block of them; one row, few, many.
LAYERS = (
    (16, 16, 640, 1280),
    (5, 17, 129, 101),
    (3, 256, 2560, 320),
    (16, 1, 1280, 640),
    (33, 8, 96, 264),
    (2, 1024, 1280, 1280),
    (16, 64, 320, 768),
    (1, 1, 1, 1),
    (3, 1, 65, 31),
    (16, 3, 321, 77),
    (2, 77, 1280, 2048),
    (17, 300, 129, 333),
    (3, 256, 10240, 1280),
    (2, 4096, 2560, 320),
)
TINY = ((3, 4, 40, 70), (2, 1, 33, 64))
# Of every group of rows; groups without rows, and one group of many.
GROUPS = (
    ((16,) * 16, 640, 1280),
    ((17, 0, 3, 64, 1), 129, 101),
    ((256,) * 3, 2560, 320),
    ((1,) * 33, 96, 264),
    ((64, 77, 0, 0, 300), 320, 768),
    ((1024, 512), 1280, 1280),
    ((0, 0, 5), 1, 1),
    ((4096, 1, 77), 641, 333),
    ((256, 256, 256), 10240, 1280),
)
TINY_GROUPS = (((3, 0, 4), 40, 70), ((1, 1), 33, 64))
FACTORS = (0.0, 1.0, -1.5, 0.3, 2.0)
WAYS = ((False, False), (True, True), (False, True), (True, False))
"""Transposed or not, with factors or without."""


def factors_of(variants: int, random: Random) -> Tensor:
    return torch.tensor(FACTORS)[torch.arange(variants) % len(FACTORS)].to(random.device)


def title(*sizes: int) -> str:
    variants, rows, n, k = sizes
    return f"{variants} x {rows} rows, {n} x {k}"


def masked_linear(random: Random, dry: bool) -> Iterator[Case]:
    """Bits behind element k - 1 are random throughout."""

    def arguments(variants: int, rows: int, n: int, k: int, transposed: bool, with_factors: bool) -> tuple[Any, ...]:
        x = random.normal(variants, rows, n if transposed else k)
        weight, words = random.normal(n, k, scale=k**-0.5), random.words(variants, n, k=k, fraction=0.3)
        bias = None if transposed or with_factors else random.normal(n)
        return x, weight, words, bias, factors_of(variants, random) if with_factors else None, transposed

    def strided(transposed: bool) -> tuple[Any, ...]:
        x, weight, words, bias, *rest = arguments(3, 6, 40, 66, transposed, False)
        x = x.transpose(0, 2).contiguous().transpose(0, 2)
        bias = None if bias is None else bias.repeat_interleave(2)[::2]
        return x, weight.t().contiguous().t(), words.repeat_interleave(2, 1)[:, ::2], bias, *rest

    def infinite(rows: int, with_factors: bool, transposed: bool) -> tuple[Any, ...]:
        x, weight, *_ = arguments(3, rows, 72, 96, transposed, False)
        removed = random.mask(72, 96, fraction=0.3)
        weight[removed] = float("inf")
        weight[::2].masked_fill_(removed[::2], float("nan"))
        words = pack_bits(removed.cpu(), backend="reference").to(random.device).expand(3, -1, -1)
        return x, weight, words, None, torch.zeros(3, device=random.device) if with_factors else None, transposed

    for number, sizes in enumerate(TINY if dry else LAYERS):
        for transposed, with_factors in WAYS:
            case = title(*sizes) + ", transposed" * transposed + ", factors" * with_factors
            yield Case(case, partial(arguments, *sizes, transposed, with_factors), exact.masked_linear)
        if number == 1:
            for transposed in (False, True):
                yield Case("strides" + ", transposed" * transposed, partial(strided, transposed), exact.masked_linear)
                for rows in (1, 8, 80):
                    for with_factors in (False, True):
                        case = f"infinite weights removed, {rows} rows" + ", transposed" * transposed
                        make = partial(infinite, rows, with_factors, transposed)
                        yield Case(case + ", factor 0" * with_factors, make, exact.masked_linear)
            for sizes in ((0, 3, 5, 7), (2, 0, 5, 7)):
                yield Case(f"nothing: {title(*sizes)}", partial(arguments, *sizes, False, False), exact.masked_linear)


def edited_linear(random: Random, dry: bool) -> Iterator[Case]:
    """Every fifth group has no entries."""

    def arguments(rows: tuple[int, ...], n: int, k: int, transposed: bool, with_factors: bool) -> tuple[Any, ...]:
        x, weight = random.normal(sum(rows), n if transposed else k), random.normal(n, k, scale=k**-0.5)
        without = range(4, len(rows), 5)
        entries = edits(rows, n * k, random.device, FACTORS if with_factors else (0.0,), without=without)
        bias = None if transposed or with_factors else random.normal(n)
        return x, weight, *entries[:4], bias, transposed

    def strided(transposed: bool) -> tuple[Any, ...]:
        x, weight, *rest = arguments((5, 0, 9), 40, 66, transposed, True)
        return x.t().contiguous().t(), weight.t().contiguous().t(), *rest

    def infinite(rows: int, transposed: bool) -> tuple[Any, ...]:
        groups = (rows, 1, rows)
        x, weight, bounds, offsets, indices, factors, _, _ = arguments(groups, 72, 96, transposed, False)
        count = int(offsets[1])
        indices = indices[:count].repeat(3)  # of all groups the same, so that no other group reads what is infinite
        weight.view(-1)[indices[:count]] = float("inf")
        weight.view(-1)[indices[:count:2]] = float("nan")
        return x, weight, bounds, torch.arange(4) * count, indices, factors[:count].repeat(3), None, transposed

    def whole() -> tuple[Any, ...]:
        x, weight, bounds, *_ = arguments((7, 9), 40, 66, False, False)
        entries = edits((7, 9), weight.numel(), random.device, (0.5, 0.0, 2.0), fraction=1.0)
        return x, weight, bounds, *entries[1:4], None, False

    for number, (rows, n, k) in enumerate(TINY_GROUPS if dry else GROUPS):
        for transposed, with_factors in WAYS:
            shown = f"{len(rows)} groups of {rows[0]}" if len(set(rows)) == 1 else f"groups of {rows}"
            case = f"{shown}, {n} x {k}" + ", transposed" * transposed + ", factors" * with_factors
            yield Case(case, partial(arguments, rows, n, k, transposed, with_factors), exact.edited_linear)
        if number == 1:
            for transposed in (False, True):
                yield Case("strides" + ", transposed" * transposed, partial(strided, transposed), exact.edited_linear)
                for count in (1, 8, 80):
                    case = f"infinite weights removed, {count} rows" + ", transposed" * transposed
                    yield Case(case, partial(infinite, count, transposed), exact.edited_linear)
            yield Case("whole weights edited", whole, exact.edited_linear)


def gated_linear(random: Random, dry: bool) -> Iterator[Case]:
    """Gates of columns, and of blocks of 8 columns."""

    def arguments(variants: int, rows: int, n: int, k: int, transposed: bool, block: int) -> tuple[Any, ...]:
        x, weight = random.normal(variants, rows, n if transposed else k), random.normal(n, k, scale=k**-0.5)
        gates = random.normal(variants, k // block)
        gates[random.mask(*gates.shape, fraction=0.3)] = 0
        return x, weight, gates, None if transposed else random.normal(n), transposed

    def infinite() -> tuple[Any, ...]:
        x, weight, gates, *rest = arguments(3, 9, 72, 96, False, 1)
        x.masked_fill_((gates == 0)[:, None], float("inf"))
        return x, weight, gates, *rest

    def strided() -> tuple[Any, ...]:
        x, weight, gates, *rest = arguments(3, 6, 40, 66, False, 1)
        return x.transpose(0, 2).contiguous().transpose(0, 2), weight.t().contiguous().t(), gates, *rest

    for number, sizes in enumerate(TINY if dry else LAYERS):
        for transposed in (False, True):
            for block in (1, 8) if sizes[3] % 8 == 0 else (1,):
                case = title(*sizes) + ", transposed" * transposed + f", blocks of {block}" * (block > 1)
                yield Case(case, partial(arguments, *sizes, transposed, block), exact.gated_linear)
        if number == 1:
            yield Case("infinite inputs removed", infinite, exact.gated_linear)
            yield Case("strides", strided, exact.gated_linear)


def masked_linear_scores(random: Random, dry: bool) -> Iterator[Case]:
    """Added to sums that are there already."""

    def arguments(variants: int, rows: int, n: int, k: int) -> tuple[Any, ...]:
        grad, x = random.normal(variants, rows, n), random.normal(variants, rows, k)
        weight, words = random.normal(n, k, scale=k**-0.5), random.words(variants, n, k=k, fraction=0.3)
        before = Random(random.device, torch.float32, 9).normal(2, n, k)
        return grad, x, weight, words, *before

    def strided() -> tuple[Any, ...]:
        *inputs, kept, ablated = arguments(3, 5, 34, 70)
        turned = [t.movedim(0, -1).contiguous().movedim(-1, 0) for t in inputs]
        return *turned, kept.t().contiguous().t(), ablated.t().contiguous().t()

    def infinite() -> tuple[Any, ...]:
        grad, x, weight, _, kept, ablated = arguments(3, 9, 72, 96)
        removed = random.mask(72, 96, fraction=0.3)
        removed[:, ::9] = True
        x[:, 0, ::9] = float("nan")
        words = pack_bits(removed.cpu(), backend="reference").to(random.device).expand(3, -1, -1)
        return grad, x, weight, words, kept, ablated

    for number, sizes in enumerate(TINY if dry else LAYERS[:-2]):
        yield Case(title(*sizes), partial(arguments, *sizes), _exact_scores, Sums())
        if number == 1:
            yield Case("strides", strided, _exact_scores, Sums())
            yield Case("NaN where all is ablated: kept sums", infinite, _exact_scores, Sums(kept_alone=True))


def _exact_scores(grad: Tensor, x: Tensor, weight: Tensor, words: Tensor, kept: Tensor, ablated: Tensor) -> Any:
    return exact.masked_linear_scores(grad, x, weight, words, torch.stack([kept, ablated]))
