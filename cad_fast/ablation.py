"""Ablation: a set of components, and the factor that their weights are multiplied by."""

import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cad_fast.ops import count_bits, pack_bits, unpack_bits

_WORD_BITS = 32
_RANDOM_BLOCK = 1 << 20  # a multiple of 32, so that blocks can be packed one by one


class Ablation:
    """A set of components among n, numbered from 0, with the factor their weights are multiplied by.

    The factor is one number for the whole set, 0 (removed) unless said otherwise, or one number per component.
    The set is held either as packed bits (n / 8 bytes) or as sorted indices (8 bytes per component); `to_packed` and
    `to_indices` convert exactly, and all else works the same on both. Ablations do not change: every tensor
    handed in or out is a copy, and all tensors are on the CPU.

    Use the constructors `from_indices`, `from_mask`, `from_packed`, `random` and `balanced_partition`.
    """

    __slots__ = ("_factor", "_indices", "_n", "_size", "_words")

    def __init__(self, n: int, words: Tensor | None, indices: Tensor | None, factor: float | Tensor) -> None:
        """For the constructors: takes checked tensors without copying; exactly one of `words` and `indices`."""
        self._n = n
        self._words = words
        self._indices = indices
        self._size = int(count_bits(words)) if words is not None else indices.numel()
        if isinstance(factor, Tensor) and self._size and bool((factor == factor[0]).all()):
            factor = float(factor[0])
        self._factor = factor

    @classmethod
    def from_indices(
        cls, n: int, indices: Tensor | Iterable[int], factor: float | Tensor | Iterable[float] = 0.0
    ) -> "Ablation":
        """The components of these numbers.

        Args:
            n: how many components there are.
            indices: [size], any integer dtype, ascending without repetition, each in [0, n).
            factor: one number, or [size] numbers in the order of `indices`.

        Raises:
            TypeError: `n` or an index is no integer, or `factor` no number.
            ValueError: an index is out of range, repeated or out of order, or `factor` has another length or is not
                finite.
        """
        n = _checked_n(n)
        checked = _checked_indices(n, indices)
        return cls(n, None, checked, _checked_factor(factor, checked.numel()))

    @classmethod
    def from_mask(cls, mask: Tensor, factor: float | Tensor | Iterable[float] = 0.0) -> "Ablation":
        """The components whose element of the mask is true; held as packed bits.

        Args:
            mask: [n], bool.
            factor: one number, or one per true element, in ascending order.
        """
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise TypeError(f"mask must be a bool tensor, got {_kind(mask)}")
        if mask.dim() != 1:
            raise ValueError(f"mask must have one dimension, got shape {tuple(mask.shape)}")
        words = pack_bits(mask.cpu())
        return cls(_checked_n(mask.numel()), words, None, _checked_factor(factor, int(count_bits(words))))

    @classmethod
    def from_packed(cls, words: Tensor, n: int, factor: float | Tensor | Iterable[float] = 0.0) -> "Ablation":
        """The components whose bit is set: component 32 * j + i is bit i of word j, as `cad_fast.ops.pack_bits` has it.

        Args:
            words: [ceil(n / 32)], int32; the bits behind the last component must be zero.
            n: how many components there are.
            factor: one number, or one per set bit, in ascending order.
        """
        n = _checked_n(n)
        if not isinstance(words, Tensor) or words.dtype != torch.int32:
            raise TypeError(f"words must be an int32 tensor, got {_kind(words)}")
        expected = -(-n // _WORD_BITS)
        if words.shape != (expected,):
            raise ValueError(f"words must have shape ({expected},) for n = {n}, got {tuple(words.shape)}")
        words = words.detach().cpu().clone(memory_format=torch.contiguous_format)
        if int(words[-1]) & ~_tail_mask(n):
            raise ValueError(f"words has bits set behind component {n - 1}, the last one")
        return cls(n, words, None, _checked_factor(factor, int(count_bits(words))))

    @classmethod
    def random(cls, n: int, fraction: float, seed: int, factor: float = 0.0) -> "Ablation":
        """Each component with probability `fraction`, independently of the others; held as packed bits.

        The same arguments give the same ablation on every machine and with every version of torch and numpy, and
        torch's random state is neither used nor changed.

        Args:
            n: how many components there are.
            fraction: probability in [0, 1].
            seed: in [0, 2**64).
            factor: one number.
        """
        n = _checked_n(n)
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"fraction must be in [0, 1], got {fraction}")
        generator = _generator(seed, stream=0)
        threshold = np.uint64(min(int(fraction * 2.0**64), 2**64 - 1))
        words = []
        for begin in range(0, n, _RANDOM_BLOCK):
            drawn = generator.random_raw(min(_RANDOM_BLOCK, n - begin))
            chosen = drawn < threshold if fraction < 1.0 else np.ones(drawn.shape, dtype=bool)
            words.append(pack_bits(torch.from_numpy(chosen)))
        return cls(n, torch.cat(words), None, _finite("factor", factor))

    @staticmethod
    def balanced_partition(n: int, parts: int, seed: int, factor: float = 0.0) -> "list[Ablation]":
        """Disjoint random ablations that together cover all components, their sizes differing by one at most.

        As reproducible as `random`, and unrelated to what it draws from the same seed. Held as indices.

        Args:
            n: how many components there are.
            parts: how many ablations, from 1 to n.
            seed: in [0, 2**64).
            factor: one number.
        """
        n = _checked_n(n)
        if not 1 <= operator.index(parts) <= n:
            raise ValueError(f"parts must be in [1, {n}], got {parts}")
        order = np.argsort(_generator(seed, stream=1).random_raw(n), kind="stable")
        factor = _finite("factor", factor)
        return [
            Ablation(n, None, torch.from_numpy(np.sort(part)).to(torch.int64), factor)
            for part in np.array_split(order, parts)
        ]

    @property
    def n(self) -> int:
        """How many components there are, ablated or not."""
        return self._n

    @property
    def size(self) -> int:
        """How many components are ablated."""
        return self._size

    @property
    def fraction(self) -> float:
        """Which part of the components is ablated."""
        return self._size / self._n

    @property
    def form(self) -> str:
        """How the set is held: "packed" or "indices"."""
        return "packed" if self._words is not None else "indices"

    @property
    def indices(self) -> Tensor:
        """[size], int64, ascending: the numbers of the ablated components."""
        return self._as_indices().clone()

    @property
    def mask(self) -> Tensor:
        """[n], bool: which components are ablated."""
        return unpack_bits(self._as_words(), self._n)

    @property
    def packed(self) -> Tensor:
        """[ceil(n / 32)], int32: `mask`, packed as by `cad_fast.ops.pack_bits`."""
        return self._as_words().clone()

    @property
    def factor(self) -> float | Tensor:
        """The one factor of all, or [size], float64, in the order of `indices`, if they differ."""
        return self._factor.clone() if isinstance(self._factor, Tensor) else self._factor

    @property
    def factors(self) -> Tensor:
        """[size], float64: the factor of each ablated component, in the order of `indices`."""
        if isinstance(self._factor, Tensor):
            return self._factor.clone()
        return torch.full((self._size,), self._factor, dtype=torch.float64)

    def to_packed(self) -> "Ablation":
        """The same ablation held as packed bits."""
        return self if self._words is not None else Ablation(self._n, self._as_words(), None, self._factor)

    def to_indices(self) -> "Ablation":
        """The same ablation held as sorted indices."""
        return self if self._indices is not None else Ablation(self._n, None, self._as_indices(), self._factor)

    def with_factor(self, factor: float | Tensor | Iterable[float]) -> "Ablation":
        """The same components with another factor: one number, or one per component."""
        return Ablation(self._n, self._words, self._indices, _checked_factor(factor, self._size))

    def with_strength(self, strength: float) -> "Ablation":
        """The same components with each factor f turned into 1 - strength * (1 - f).

        0 leaves the weights as they are, 1 is this ablation itself, above 1 goes beyond it.
        """
        strength = _finite("strength", strength)
        return self if strength == 1.0 else self.with_factor(1.0 - strength * (1.0 - self._factor))

    def __len__(self) -> int:
        return self._size

    def __contains__(self, component: Any) -> bool:
        component = operator.index(component)
        if not 0 <= component < self._n:
            return False
        if self._words is not None:
            return bool(int(self._words[component // _WORD_BITS]) >> (component % _WORD_BITS) & 1)
        return bool(_find(self._indices, torch.tensor([component]))[1])

    def __eq__(self, other: object) -> bool:
        """Same n, same set, and the same factor for each component, whatever the form."""
        if not isinstance(other, Ablation):
            return NotImplemented
        if self._n != other._n or self._size != other._size:
            return False
        if self.form == "indices" == other.form:
            same_set = torch.equal(self._indices, other._indices)
        else:
            same_set = torch.equal(self._as_words(), other._as_words())
        return same_set and (self._size == 0 or _same_factor(self._factor, other._factor))

    def __hash__(self) -> int:
        return hash((self._n, self._as_words().numpy().tobytes()))

    def __repr__(self) -> str:
        factor = "one per component" if isinstance(self._factor, Tensor) else self._factor
        return f"Ablation(n={self._n}, size={self._size}, factor={factor}, form={self.form!r})"

    def __or__(self, other: "Ablation") -> "Ablation":
        """Union. ValueError if a component of both has different factors."""
        return self._merge(other, operator.or_)

    def __and__(self, other: "Ablation") -> "Ablation":
        """Intersection. ValueError if a component of both has different factors."""
        return self._merge(other, operator.and_)

    def __sub__(self, other: "Ablation") -> "Ablation":
        """The components of this ablation that the other lacks, with their factors."""
        return self._merge(other, lambda left, right: left & ~right)

    def __xor__(self, other: "Ablation") -> "Ablation":
        """The components of exactly one of the two, with their factors."""
        return self._merge(other, operator.xor)

    def __invert__(self) -> "Ablation":
        """All other components, with the same factor; ValueError if there is more than one. Held as packed bits."""
        if isinstance(self._factor, Tensor):
            raise ValueError("an ablation with one factor per component has no complement: its factors are unknown")
        words = ~self._as_words()
        words[-1] &= _tail_mask(self._n)
        return Ablation(self._n, words, None, self._factor)

    def _merge(self, other: "Ablation", rule: Callable[[Tensor, Tensor], Tensor]) -> "Ablation":
        """The set that `rule` makes of two, given as words or as membership; packed if one of the two is."""
        if not isinstance(other, Ablation):
            return NotImplemented
        if self._n != other._n:
            raise ValueError(f"the ablations are of {self._n} and {other._n} components")
        packed = self._words is not None or other._words is not None
        if packed and _same_factor(self._factor, other._factor) and not isinstance(self._factor, Tensor):
            return Ablation(self._n, rule(self._as_words(), other._as_words()), None, self._factor)

        candidates = torch.cat([self._as_indices(), other._as_indices()]).unique()
        at_left, in_left = _find(self._as_indices(), candidates)
        at_right, in_right = _find(other._as_indices(), candidates)
        left = torch.zeros(candidates.numel(), dtype=torch.float64)
        right = left.clone()
        left[in_left] = self.factors[at_left[in_left]]
        right[in_right] = other.factors[at_right[in_right]]

        kept = rule(in_left, in_right)
        conflicts = kept & in_left & in_right & (left != right)
        if bool(conflicts.any()):
            first = int(conflicts.nonzero()[0])
            raise ValueError(
                f"{int(conflicts.sum())} components have different factors in the two ablations, the first of them "
                f"component {int(candidates[first])} with {float(left[first])} and {float(right[first])}"
            )
        factors = torch.where(in_left, left, right)[kept]
        # Without a component left there is no factor to read off; the left one's serves, if it has just one.
        factor = factors if factors.numel() else self._factor if isinstance(self._factor, float) else 0.0
        merged = Ablation(self._n, None, candidates[kept], factor)
        return merged.to_packed() if packed else merged

    def _as_words(self) -> Tensor:
        if self._words is not None:
            return self._words
        words = torch.zeros(-(-self._n // _WORD_BITS), dtype=torch.int32)
        bits = torch.ones((), dtype=torch.int32) << (self._indices % _WORD_BITS).to(torch.int32)
        return words.index_add_(0, self._indices // _WORD_BITS, bits)

    def _as_indices(self) -> Tensor:
        if self._indices is not None:
            return self._indices
        used = self._words.nonzero().squeeze(1)  # skips the empty words: most of them, in a small set
        word, bit = unpack_bits(self._words[used].unsqueeze(1), _WORD_BITS).nonzero().unbind(1)
        return used[word] * _WORD_BITS + bit


def _generator(seed: int, stream: int) -> np.random.Philox:
    """Counter-based random bits; numpy promises that a bit generator's raw output never changes."""
    seed = operator.index(seed)
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {seed}")
    return np.random.Philox(key=np.array([seed, stream], dtype=np.uint64))


def _tail_mask(n: int) -> int:
    """The bits of the last word that belong to components, as an int32."""
    return (1 << n % _WORD_BITS) - 1 if n % _WORD_BITS else -1


def _find(haystack: Tensor, needles: Tensor) -> tuple[Tensor, Tensor]:
    """Where each needle is, or would be, in sorted distinct numbers, and whether it is there."""
    at = torch.searchsorted(haystack, needles)
    if haystack.numel() == 0:
        return at, torch.zeros_like(needles, dtype=torch.bool)
    return at, haystack[at.clamp(max=haystack.numel() - 1)] == needles


def _same_factor(left: float | Tensor, right: float | Tensor) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return torch.equal(left, right)
    return isinstance(left, float) and isinstance(right, float) and left == right


def _kind(value: Any) -> str:
    return f"a {value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__


def _finite(name: str, value: Any) -> float:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, got {_kind(value)}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {float(value)}")
    return float(value)


def _checked_n(n: Any) -> int:
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"n must be an int, got {_kind(n)}")
    if operator.index(n) < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return operator.index(n)


def _checked_indices(n: int, indices: Any) -> Tensor:
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


def _checked_factor(factor: Any, size: int) -> float | Tensor:
    if getattr(factor, "ndim", None) == 0 or not isinstance(factor, Iterable):
        return _finite("factor", factor)
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
