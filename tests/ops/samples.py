"""Inputs to try every operator on, by its name: small, and odd in every way allowed.

Each is a tuple of arguments of the custom op without its last, the backend.
"""

import math
from typing import Any

import torch
from torch import Tensor

from cad_fast.ops.checks.bits import words_for


def of_bits_linear() -> list[tuple[Any, ...]]:
    words = torch.arange(35, dtype=torch.int32).reshape(5, 7) * 0x1234567 - 9
    x = torch.linspace(-1, 1, 3 * 215, dtype=torch.float64).reshape(3, 215)
    return [
        (x, words, 215, False),
        (x[:, :5], words, 215, True),
        (x.t()[:7, :3].t(), words.t()[:, :1], 7, False),
        (x[:, :0], words[:, :0], 0, False),
        (x[:, :5], words[:, :0], 0, True),
        (x[:0], words, 215, False),
        (x[:, :0], words[:0], 215, True),
    ]


def of_count_bits() -> list[tuple[Any, ...]]:
    words = torch.arange(35, dtype=torch.int32).reshape(5, 7) * 0x1234567 - 9
    return [(words,), (words.t(),), (words[0],), (words[:, :0],), (words[:0],)]


def of_edited_conv2d() -> list[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(0)

    def sample(
        shape: list[int], filters: int, kernel: list[int], *how: Any, dtype: torch.dtype = torch.float32
    ) -> list:
        x = torch.randn(shape, generator=generator).to(dtype)
        weight = torch.randn([filters, shape[1] // how[3], *kernel], generator=generator).to(dtype)
        edits = [torch.randperm(weight.numel(), generator=generator)[:n].sort().values for n in (9, 0, 0, 1, 20)]
        offsets = torch.tensor([0, *(len(edit) for edit in edits)]).cumsum(0)
        factors = torch.randn(int(offsets[-1]), generator=generator)
        factors[::2] = 0.0
        bias = torch.randn(filters, generator=generator).to(dtype)
        rows = torch.tensor([0, 2, 3, 4, 4, shape[0]])
        return [x, weight, rows, offsets, torch.cat(edits), factors, bias, *how, None]

    plain = sample([6, 5, 4, 3], 7, [3, 3], [1, 1], [1, 1], [1, 1], 1)
    wide = sample([5, 4, 9, 8], 6, [2, 3], [2, 1], [0, 2], [1, 2], 2)
    half = sample([7, 3, 4, 4], 13, [1, 1], [1, 1], [0, 0], [1, 1], 1, dtype=torch.bfloat16)
    trained = [plain[0].clone().requires_grad_(), plain[1].clone().requires_grad_(), *plain[2:]]
    without = [*plain[:3], torch.zeros(6, dtype=torch.int64), plain[4][:0], plain[5][:0], None, *plain[7:]]
    channels_last = [plain[0].to(memory_format=torch.channels_last), *plain[1:]]
    nothing = torch.zeros(2, dtype=torch.int64)
    empty = [plain[0][:0], plain[1], nothing, nothing, plain[4][:0], plain[5][:0], *plain[6:]]
    grad = torch.randn([6, 7, 4, 3], generator=generator)
    back = [grad, *plain[1:6], None, *plain[7:11], [4, 3]]
    return [tuple(sample) for sample in (plain, wide, half, trained, without, channels_last, empty, back)]


def of_edited_linear() -> list[tuple[Any, ...]]:
    def sample(rows: list[int], n: int, k: int, dtype: torch.dtype, transposed: bool, biased: bool) -> tuple:
        generator = torch.Generator().manual_seed(n * k)

        def values(*shape: int) -> Tensor:
            # Small integers, so that bfloat16 holds the sums and all backends agree to the last bit.
            return torch.randint(-1, 2, shape, generator=generator).to(dtype)

        groups = [torch.randperm(n * k, generator=generator)[: 3 * g].sort().values for g in range(len(rows) - 1)]
        offsets = torch.tensor([0, *(len(g) for g in groups)]).cumsum(0)
        factors = torch.arange(int(offsets[-1]), dtype=torch.float32) % 3 - 1
        # torch cannot trace the slices of the weight's gradient that have no rows at all.
        differentiable = rows[-1] > 0
        x = values(rows[-1], n if transposed else k).requires_grad_(differentiable)
        bias = values(n).requires_grad_() if biased else None
        weight = values(n, k).requires_grad_(differentiable)
        return x, weight, torch.tensor(rows), offsets, torch.cat(groups), factors, bias, transposed

    return [
        sample([0, 2, 2, 7, 8], 33, 65, torch.float32, False, True),
        sample([0, 5, 9], 17, 31, torch.float32, True, False),
        sample([0, 1, 2, 20], 35, 97, torch.bfloat16, False, True),
        sample([0, 0], 5, 9, torch.float32, False, False),
    ]


def of_gated_conv2d() -> list[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(0)

    def sample(
        shape: list[int], filters: int, kernel: list[int], *how: Any, dtype: torch.dtype = torch.float32
    ) -> list:
        def values(*shape: int) -> Tensor:
            return torch.randint(-2, 3, shape, generator=generator).to(dtype)

        weight = values(filters, shape[2] // how[3], *kernel)
        gates = torch.randint(-1, 2, (shape[0], filters), generator=generator).to(dtype)
        return [values(*shape), weight, gates, values(filters), *how, None]

    plain = sample([3, 2, 5, 4, 3], 7, [3, 3], [1, 1], [1, 1], [1, 1], 1)
    wide = sample([2, 3, 4, 9, 8], 6, [2, 3], [2, 1], [0, 2], [1, 2], 2)
    half = sample([2, 1, 3, 4, 4], 13, [1, 1], [1, 1], [0, 0], [1, 1], 1, dtype=torch.bfloat16)
    trained = [t.clone().requires_grad_() if isinstance(t, Tensor) else t for t in plain]
    without = [*plain[:3], None, *plain[4:]]
    channels_last = [plain[0].transpose(-1, -3).contiguous().transpose(-1, -3), *plain[1:]]
    empty = [plain[0][:0], plain[1], plain[2][:0], *plain[3:]]
    grad = torch.randint(-2, 3, (3, 2, 7, 4, 3), generator=generator).float()
    back = [grad, plain[1], plain[2], None, *plain[4:8], [4, 3]]
    return [tuple(sample) for sample in (plain, wide, half, trained, without, channels_last, empty, back)]


def of_gated_linear() -> list[tuple[Any, ...]]:
    def sample(variants: int, rows: int, n: int, k: int, c: int, dtype: torch.dtype, transposed: bool) -> tuple:
        generator = torch.Generator().manual_seed(n * k + rows)

        def values(*shape: int) -> Tensor:
            # Small integers, so that bfloat16 holds the sums and all backends agree to the last bit.
            return torch.randint(-1, 2, shape, generator=generator).to(dtype)

        x = values(variants, rows, n if transposed else k).requires_grad_()
        bias = values(n).requires_grad_() if not transposed else None
        return x, values(n, k).requires_grad_(), values(variants, c).requires_grad_(), bias, transposed

    return [
        sample(3, 5, 33, 65, 13, torch.float32, False),
        sample(2, 1, 7, 31, 31, torch.float32, False),
        sample(2, 3, 35, 96, 12, torch.bfloat16, True),
        sample(2, 7, 35, 99, 99, torch.bfloat16, False),
        sample(0, 3, 5, 9, 3, torch.float32, False),
    ]


def of_gram_bits() -> list[tuple[Any, ...]]:
    words = torch.arange(35, dtype=torch.int32).reshape(5, 7) * 0x1234567 - 9
    return [(words,), (words.t(),), (words[:1],), (words[:, :0],), (words[:0],)]


def of_masked_conv2d() -> list[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(0)

    def sample(
        shape: list[int], filters: int, kernel: list[int], *how: Any, dtype: torch.dtype = torch.float32
    ) -> list:
        x = torch.randn(shape, generator=generator).to(dtype)
        per_filter = [shape[2] // how[3], *kernel]
        weight = torch.randn([filters, *per_filter], generator=generator).to(dtype)
        words_shape = [shape[0], filters, words_for(math.prod(per_filter))]
        words = torch.randint(-(2**31), 2**31 - 1, words_shape, generator=generator).to(torch.int32)
        bias = torch.randn(filters, generator=generator).to(dtype)
        return [x, weight, words, bias, torch.randn(shape[0], generator=generator), *how, None]

    plain = sample([3, 2, 5, 4, 3], 7, [3, 3], [1, 1], [1, 1], [1, 1], 1)
    wide = sample([2, 3, 4, 9, 8], 6, [2, 3], [2, 1], [0, 2], [1, 2], 2)
    half = sample([2, 1, 3, 4, 4], 13, [1, 1], [1, 1], [0, 0], [1, 1], 1, dtype=torch.bfloat16)
    trained = [plain[0].clone().requires_grad_(), plain[1].clone().requires_grad_(), *plain[2:]]
    without = [*plain[:3], None, None, *plain[5:]]
    channels_last = [plain[0].transpose(-1, -3).contiguous().transpose(-1, -3), *plain[1:]]
    empty = [plain[0][:0], plain[1], plain[2][:0], plain[3], plain[4][:0], *plain[5:]]
    grad = torch.randn([3, 2, 7, 4, 3], generator=generator)
    back = [grad, plain[1], plain[2], None, plain[4], *plain[5:9], [4, 3]]
    return [tuple(sample) for sample in (plain, wide, half, trained, without, channels_last, empty, back)]


def of_masked_linear() -> list[tuple[Any, ...]]:
    def sample(variants: int, rows: int, n: int, k: int, dtype: torch.dtype, transposed: bool, extra: bool) -> tuple:
        generator = torch.Generator().manual_seed(n * k + rows)

        def values(*shape: int) -> Tensor:
            # Small integers, so that bfloat16 holds the sums and all backends agree to the last bit.
            return torch.randint(-1, 2, shape, generator=generator).to(dtype)

        words = torch.randint(-(2**31), 2**31, (variants, n, words_for(k)), generator=generator)
        x = values(variants, rows, n if transposed else k).requires_grad_()
        bias = values(n).requires_grad_() if extra and not transposed else None
        factors = torch.linspace(-1, 1, variants) if extra else None
        return x, values(n, k).requires_grad_(), words.to(torch.int32), bias, factors, transposed

    return [
        sample(3, 5, 33, 65, torch.float32, False, True),
        sample(2, 1, 7, 31, torch.float32, False, False),
        sample(2, 3, 35, 97, torch.bfloat16, True, True),
        sample(0, 3, 5, 9, torch.float32, False, False),
    ]


def of_masked_linear_scores() -> list[tuple[Any, ...]]:
    def sample(variants: int, rows: int, n: int, k: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        def ramp(*shape: int) -> Tensor:
            size = torch.Size(shape).numel()
            return (torch.arange(size) % 17 - 8).reshape(shape).to(dtype) / 8

        words = torch.arange(variants * n * words_for(k), dtype=torch.int32) * 0x2345679 - 7
        sums = (torch.ones(n, k), torch.full((n, k), -2.0))
        return ramp(variants, rows, n), ramp(variants, rows, k), ramp(n, k), words.reshape(variants, n, -1), *sums

    grad, x, weight, words, kept, ablated = sample(2, 3, 5, 33)
    return [
        (grad, x, weight, words, kept, ablated),
        sample(3, 1, 6, 64, torch.bfloat16),
        (grad, x, weight, words, kept.t().contiguous().t(), ablated),
        sample(2, 0, 3, 7),
        (grad[:0], x[:0], weight, words[:0], kept, ablated),
    ]


def of_pack_bits() -> list[tuple[Any, ...]]:
    mask = torch.arange(3 * 77).reshape(3, 77) % 3
    return [
        (mask.bool(),),
        (mask.to(torch.uint8)[..., ::2],),
        (mask.bool()[0],),
        (torch.zeros(2, 0, dtype=torch.bool),),
        (torch.ones(0, 33, dtype=torch.bool),),
    ]


def of_seeded_mask() -> list[tuple[Any, ...]]:
    cpu = torch.device("cpu")
    return [
        (7, 0, 3, 77, 2**30, cpu),
        (-(2**63), 2**32 - 2, 2, 161, 2**31 + 12345, cpu),
        (-1, 5, 1, 64, 2**32, cpu),
        (0, 5, 2, 33, 0, cpu),
        (1, 0, 0, 33, 2**31, cpu),
        (1, 0, 3, 0, 2**31, cpu),
    ]


def of_unpack_bits() -> list[tuple[Any, ...]]:
    words = torch.arange(12, dtype=torch.int32).reshape(2, 6) * 0x2345679 - 7
    return [
        (words, 6 * 32),
        (words[..., ::2], 77),
        (words[0], 161),
        (words[:, :0], 0),
        (words[:0], 170),
    ]


SAMPLES = {
    "bits_linear": of_bits_linear,
    "count_bits": of_count_bits,
    "edited_conv2d": of_edited_conv2d,
    "edited_linear": of_edited_linear,
    "gated_conv2d": of_gated_conv2d,
    "gated_linear": of_gated_linear,
    "gram_bits": of_gram_bits,
    "masked_conv2d": of_masked_conv2d,
    "masked_linear": of_masked_linear,
    "masked_linear_scores": of_masked_linear_scores,
    "pack_bits": of_pack_bits,
    "seeded_mask": of_seeded_mask,
    "unpack_bits": of_unpack_bits,
}
