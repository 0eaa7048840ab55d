"""What Ablation checks of its arguments, and small functions on sorted indices, words and factors."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..ops.on_host import unpack_bits

WORD_BITS = 32


def random_bits(seed: int, stream: int) -> np.random.Philox:
    """Counter-based random bits; numpy promises that a bit generator's raw output never changes."""
    return np.random.Philox(key=np.array([checked_seed(seed), stream], dtype=np.uint64))


def checked_seed(seed: Any) -> int:
    seed = operator.index(seed)
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {seed}")
    return seed


def checked_fraction(fraction: Any) -> float:
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"fraction must be in [0, 1], got {fraction}")
    return float(fraction)


def tail_mask(n: int) -> int:
    """The bits of the last word that belong to components, as an int32."""
    return (1 << n % WORD_BITS) - 1 if n % WORD_BITS else -1


def set_bits(words: Tensor) -> Tensor:
    """Words int32 [w] to the numbers of the set bits, int64, ascending."""
    used = words.nonzero().squeeze(1)  # skips the empty words: most of them, in a small set
    word, bit = unpack_bits(words[used].unsqueeze(1), WORD_BITS).nonzero().unbind(1)
    return used[word] * WORD_BITS + bit


def find(haystack: Tensor, needles: Tensor) -> tuple[Tensor, Tensor]:
    """Where each needle is, or would be, in sorted distinct numbers, and whether it is there."""
    at = torch.searchsorted(haystack, needles)
    if haystack.numel() == 0:
        return at, torch.zeros_like(needles, dtype=torch.bool)
    return at, haystack[at.clamp(max=haystack.numel() - 1)] == needles


def same_factor(left: float | Tensor, right: float | Tensor) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return torch.equal(left, right)
    return isinstance(left, float) and isinstance(right, float) and left == right


def kind_of(value: Any) -> str:
    return f"a {value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__


def finite(name: str, value: Any) -> float:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, got {kind_of(value)}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {float(value)}")
    return float(value)


def checked_n(n: Any) -> int:
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"n must be an int, got {kind_of(n)}")
    if operator.index(n) < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return operator.index(n)


def checked_indices(n: int, indices: Any) -> Tensor:
    if not isinstance(indices, Tensor):
        values = indices if isinstance(indices, np.ndarray) else list(indices)
        indices = torch.as_tensor(values) if len(values) else torch.empty(0, dtype=torch.int64)
    if indices.dtype == torch.bool or indices.is_floating_point() or indices.is_complex():
        raise TypeError(f"indices must be integers, got {indices.dtype}")
    if indices.dim() != 1:
        raise ValueError(f"indices must have one dimension, got shape {tuple(indices.shape)}")
    indices = indices.detach().to("cpu", torch.int64, copy=True).contiguous()
    outside = (indices < 0) | (indices >= n)
    if bool(outside.any()):
        at = int(outside.nonzero()[0])
        raise ValueError(f"indices must be in [0, {n}): indices[{at}] is {int(indices[at])}")
    wrong = (indices.diff() <= 0).nonzero()
    if wrong.numel():
        at = int(wrong[0])
        before, after = int(indices[at]), int(indices[at + 1])
        fault = f"{after} occurs twice" if before == after else f"{after} follows {before}"
        raise ValueError(f"indices must ascend without repetition: at indices[{at + 1}], {fault}")
    return indices


def checked_factor(factor: Any, size: int) -> float | Tensor:
    if getattr(factor, "ndim", None) == 0 or not isinstance(factor, Iterable):
        return finite("factor", factor)
    if isinstance(factor, str | bytes):
        raise TypeError(f"factor must be a number or numbers, got {type(factor).__name__}")
    given = isinstance(factor, Tensor | np.ndarray)
    factors = torch.as_tensor(factor) if given else torch.tensor(list(factor), dtype=torch.float64)
    if factors.dtype == torch.bool or factors.is_complex():
        raise TypeError(f"factor must be real numbers, got {factors.dtype}")
    if factors.shape != (size,):
        raise ValueError(f"factor must be one number or {size}, one per ablated component; got {tuple(factors.shape)}")
    factors = factors.detach().to("cpu", torch.float64, copy=True).contiguous()
    if not bool(factors.isfinite().all()):
        raise ValueError("factor must be finite")
    return factors if size else 0.0
