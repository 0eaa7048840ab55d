"""seeded_mask: random ablations of many variants from one seed, with nothing to store."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cad_fast.ops import backends, checks, reference
from cad_fast.ops.define import define


def seeded_mask(
    seed: int,
    first: int,
    variants: int,
    n: int,
    fraction: float,
    *,
    device: torch.device | str = "cpu",
    backend: str | None = None,
) -> Tensor:
    """Draw packed masks: every bit of every variant is set with probability `fraction`, independently of all others.

    A bit depends on the seed, the number of its variant and its position alone. So any part of the variants can be
    drawn again by itself, on any machine and device, and a seed with a fraction stands for all of them.

    Args:
        seed: in [0, 2**64).
        first: number of the first variant.
        variants: how many variants; `first + variants` is at most 2**32.
        n: how many elements each mask has.
        fraction: in [0, 1]; 0 sets no bit and 1 sets all of them, in between it is rounded to a multiple of 2**-32.
        device: where the result is put.
        backend: "auto", "triton", "native" or "reference"; None means the one in force (`use_backend`).

    Returns:
        [variants, ceil(n / 32)], int32; the bits behind element n - 1 are zero.

    Raises:
        TypeError: a number is not of its type.
        ValueError: a number is outside its range.
        RuntimeError: the backend asked for cannot run.

    Source: Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011). Bit i
    of variant v is whether draw i % 4 of the block with counter (i // 4, v), 64 bits each, and key `seed` is below
    round(fraction * 2**32).
    """
    checks.size("seed", seed)
    if seed >= 2**64:
        raise ValueError(f"seed must be below 2**64, got {seed}")
    if isinstance(fraction, bool) or not isinstance(fraction, int | float):
        raise TypeError(f"fraction must be a float, got {type(fraction).__name__}")
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must be in [0, 1], got {fraction}")
    _check_sizes(first, variants, n)
    # The schema of a custom op knows signed integers of 64 bits only.
    signed = seed if seed < 2**63 else seed - 2**64
    return _op(signed, first, variants, n, round(fraction * 2**32), torch.device(device), backend)


def _check_sizes(first: Any, variants: Any, n: Any) -> None:
    checks.size("first", first)
    checks.size("variants", variants)
    checks.size("n", n)
    if first + variants > 2**32:
        raise ValueError(f"first + variants must be at most 2**32, got {first} + {variants}")


def _empty(seed: int, first: int, variants: int, n: int, threshold: int, device: torch.device) -> Tensor:
    return torch.empty((variants, checks.bits.words_for(n)), dtype=torch.int32, device=device)


@define("seeded_mask", _empty)
def _op(seed: int, first: int, variants: int, n: int, threshold: int, device: torch.device) -> None:
    _check_sizes(first, variants, n)
    if not 0 <= threshold <= 2**32:
        raise ValueError(f"threshold must be in [0, 2**32], got {threshold}")


def _native_seeded_mask(seed: int, first: int, variants: int, n: int, threshold: int, device: torch.device) -> Tensor:
    width = checks.bits.words_for(n)
    words = torch.empty((variants, width), dtype=torch.int32)
    backends.native.module().seeded_mask(seed, first, variants, 0, width, threshold, words.data_ptr())
    if n % checks.bits.WORD_BITS:
        words[:, -1] &= (1 << n % checks.bits.WORD_BITS) - 1
    return words


def _unsigned(implementation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The implementation, called with the seed as it was given."""
    return lambda seed, *rest: implementation(seed % 2**64, *rest)


_op.implement(
    triton=_unsigned(backends.triton.of("seeded_mask")),
    native=_unsigned(_native_seeded_mask),
    reference=_unsigned(reference.seeded_mask),
)
