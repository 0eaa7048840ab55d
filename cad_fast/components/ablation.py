"""Ablation: a set of components, and the factor that their weights are multiplied by."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..ops.on_host import count_bits, pack_bits, seeded_mask, unpack_bits
from .packed import (
    WORD_BITS,
    checked_factor,
    checked_fraction,
    checked_indices,
    checked_n,
    checked_seed,
    find,
    finite,
    kind_of,
    random_bits,
    same_factor,
    set_bits,
    tail_mask,
)

_RANDOM_BLOCK = 1 << 20  # a multiple of 32, so that blocks can be packed one by one


class Ablation:
    """A set of components among n, numbered from 0, with the factor their weights are multiplied by.

    The factor is one number for the whole set, 0 (removed) unless said otherwise, or one number per component.
    The set is held as packed bits (n / 8 bytes), as sorted indices (8 bytes per component), or as the seed it is drawn
    from (no tensor at all; drawn anew whenever its components are asked for). `to_packed` and `to_indices` convert
    exactly, and all else works the same on each. Ablations do not change: every tensor handed in or out is a copy, and
    all tensors are on the CPU.

    Use the constructors `from_indices`, `from_mask`, `from_packed`, `from_gates`, `random`, `seeded` and
    `balanced_partition`. `random` and `seeded` both draw each component independently, and the same everywhere, but
    with different generators: the same seed gives different sets. `seeded` can draw many variants at once.
    """

    __slots__ = ("_factor", "_indices", "_n", "_seed", "_size", "_words")

    def __init__(
        self,
        n: int,
        words: Tensor | None,
        indices: Tensor | None,
        factor: float | Tensor,
        seed: tuple[int, int, float] | None = None,
    ) -> None:
        """For the constructors: takes checked values without copying; exactly one of `words`, `indices` and `seed`.

        `seed` is the (seed, variant, fraction) of `seeded`.
        """
        self._n = n
        self._words = words
        self._indices = indices
        self._seed = seed
        self._size: int | None = None  # counted when asked for
        if isinstance(factor, Tensor) and factor.numel() and bool((factor == factor[0]).all()):
            factor = float(factor[0])
        self._factor = factor

    @classmethod
    def from_indices(
        cls, n: int, indices: Tensor | Iterable[int], factor: float | Tensor | Iterable[float] = 0.0
    ) -> Ablation:
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
        n = checked_n(n)
        checked = checked_indices(n, indices)
        return cls(n, None, checked, checked_factor(factor, checked.numel()))

    @classmethod
    def from_mask(cls, mask: Tensor, factor: float | Tensor | Iterable[float] = 0.0) -> Ablation:
        """The components whose element of the mask is true; held as packed bits.

        Args:
            mask: [n], bool.
            factor: one number, or one per true element, in ascending order.
        """
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise TypeError(f"mask must be a bool tensor, got {kind_of(mask)}")
        if mask.dim() != 1:
            raise ValueError(f"mask must have one dimension, got shape {tuple(mask.shape)}")
        words = pack_bits(mask.cpu())
        return cls(checked_n(mask.numel()), words, None, checked_factor(factor, int(count_bits(words))))

    @classmethod
    def from_packed(cls, words: Tensor, n: int, factor: float | Tensor | Iterable[float] = 0.0) -> Ablation:
        """The components whose bit is set: component 32 * j + i is bit i of word j, as `cad_fast.ops.pack_bits` has it.

        Args:
            words: [ceil(n / 32)], int32; the bits behind the last component must be zero.
            n: how many components there are.
            factor: one number, or one per set bit, in ascending order.
        """
        n = checked_n(n)
        if not isinstance(words, Tensor) or words.dtype != torch.int32:
            raise TypeError(f"words must be an int32 tensor, got {kind_of(words)}")
        expected = -(-n // WORD_BITS)
        if words.shape != (expected,):
            raise ValueError(f"words must have shape ({expected},) for n = {n}, got {tuple(words.shape)}")
        words = words.detach().cpu().clone(memory_format=torch.contiguous_format)
        if int(words[-1]) & ~tail_mask(n):
            raise ValueError(f"words has bits set behind component {n - 1}, the last one")
        return cls(n, words, None, checked_factor(factor, int(count_bits(words))))

    @classmethod
    def random(cls, n: int, fraction: float, seed: int, factor: float = 0.0) -> Ablation:
        """Each component with probability `fraction`, independently of the others; held as packed bits.

        The same arguments give the same ablation on every machine and with every version of torch and numpy, and
        torch's random state is neither used nor changed.

        Args:
            n: how many components there are.
            fraction: probability in [0, 1].
            seed: in [0, 2**64).
            factor: one number.
        """
        n = checked_n(n)
        fraction = checked_fraction(fraction)
        generator = random_bits(seed, stream=0)
        threshold = np.uint64(min(int(fraction * 2.0**64), 2**64 - 1))
        words = []
        for begin in range(0, n, _RANDOM_BLOCK):
            drawn = generator.random_raw(min(_RANDOM_BLOCK, n - begin))
            chosen = drawn < threshold if fraction < 1.0 else np.ones(drawn.shape, dtype=bool)
            words.append(pack_bits(torch.from_numpy(chosen)))
        return cls(n, torch.cat(words), None, finite("factor", factor))

    @classmethod
    def seeded(cls, n: int, fraction: float, seed: int, variant: int = 0, factor: float = 0.0) -> Ablation:
        """Each component with probability `fraction`, independently of the others; held as the seed alone.

        The variants of one seed are independent of each other. The set is what `cad_fast.ops.seeded_mask` draws, the
        same on every machine; `stacked_words` draws variants with consecutive numbers together.

        Args:
            n: how many components there are.
            fraction: probability in [0, 1], rounded to a multiple of 2**-32.
            seed: in [0, 2**64).
            variant: in [0, 2**32).
            factor: one number.
        """
        if not 0 <= operator.index(variant) < 2**32:
            raise ValueError(f"variant must be in [0, 2**32), got {variant}")
        drawn_from = (checked_seed(seed), operator.index(variant), checked_fraction(fraction))
        return cls(checked_n(n), None, None, finite("factor", factor), drawn_from)

    @classmethod
    def from_gates(cls, gates: Tensor) -> Ablation:
        """What multiplies each component's weights: 1 keeps it, anything else is the factor of an ablated one.

        `from_gates(a.gates) == a`, unless `a` has components with the factor 1, which `gates` cannot tell from kept.

        Args:
            gates: [n], float.
        """
        if not isinstance(gates, Tensor) or not gates.is_floating_point():
            raise TypeError(f"gates must be a float tensor, got {kind_of(gates)}")
        if gates.dim() != 1:
            raise ValueError(f"gates must have one dimension, got shape {tuple(gates.shape)}")
        gates = gates.detach().to("cpu", torch.float64)
        ablated = gates != 1
        return cls.from_mask(ablated, gates[ablated])

    @staticmethod
    def balanced_partition(n: int, parts: int, seed: int, factor: float = 0.0) -> list[Ablation]:
        """Disjoint random ablations that together cover all components, their sizes differing by one at most.

        As reproducible as `random`, and unrelated to what it draws from the same seed. Held as indices.

        Args:
            n: how many components there are.
            parts: how many ablations, from 1 to n.
            seed: in [0, 2**64).
            factor: one number.
        """
        n = checked_n(n)
        if not 1 <= operator.index(parts) <= n:
            raise ValueError(f"parts must be in [1, {n}], got {parts}")
        order = np.argsort(random_bits(seed, stream=1).random_raw(n), kind="stable")
        factor = finite("factor", factor)
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
        if self._size is None:
            self._size = int(count_bits(self._as_words())) if self._indices is None else self._indices.numel()
        return self._size

    @property
    def fraction(self) -> float:
        """Which part of the components is ablated."""
        return self.size / self._n

    @property
    def form(self) -> str:
        """How the set is held: "packed", "indices" or "seed"."""
        return "packed" if self._words is not None else "indices" if self._indices is not None else "seed"

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
        return torch.full((self.size,), self._factor, dtype=torch.float64)

    @property
    def gates(self) -> Tensor:
        """[n], float64: what multiplies each component's weights, 1 where it is kept, its factor where ablated."""
        gates = torch.ones(self._n, dtype=torch.float64)
        if isinstance(self._factor, Tensor):
            gates[self._as_indices()] = self._factor
            return gates
        return gates.masked_fill_(unpack_bits(self._as_words(), self._n), self._factor)

    def to_packed(self) -> Ablation:
        """The same ablation held as packed bits."""
        return self if self._words is not None else Ablation(self._n, self._as_words(), None, self._factor)

    def to_indices(self) -> Ablation:
        """The same ablation held as sorted indices."""
        return self if self._indices is not None else Ablation(self._n, None, self._as_indices(), self._factor)

    def with_factor(self, factor: float | Tensor | Iterable[float]) -> Ablation:
        """The same components with another factor: one number, or one per component."""
        one = isinstance(factor, float)  # needs no counting of what a seed draws
        factor = finite("factor", factor) if one else checked_factor(factor, self.size)
        return Ablation(self._n, self._words, self._indices, factor, self._seed)

    def with_strength(self, strength: float) -> Ablation:
        """The same components with each factor f turned into 1 - strength * (1 - f).

        0 leaves the weights as they are, 1 is this ablation itself, above 1 goes beyond it.
        """
        strength = finite("strength", strength)
        return self if strength == 1.0 else self.with_factor(1.0 - strength * (1.0 - self._factor))

    def __len__(self) -> int:
        return self.size

    def __contains__(self, component: Any) -> bool:
        component = operator.index(component)
        if not 0 <= component < self._n:
            return False
        if self._indices is not None:
            return bool(find(self._indices, torch.tensor([component]))[1])
        return bool(int(self._as_words()[component // WORD_BITS]) >> (component % WORD_BITS) & 1)

    def __eq__(self, other: object) -> bool:
        """Same n, same set, and the same factor for each component, whatever the form."""
        if not isinstance(other, Ablation):
            return NotImplemented
        if self._n != other._n:
            return False
        if self.form == "indices" == other.form:
            same_set = torch.equal(self._as_indices(), other._as_indices())
        else:
            same_seed = self._seed is not None and self._seed == other._seed
            same_set = same_seed or torch.equal(self._as_words(), other._as_words())
        return same_set and (same_factor(self._factor, other._factor) or self.size == 0)

    def __hash__(self) -> int:
        return hash((self._n, self._as_words().numpy().tobytes()))

    def __repr__(self) -> str:
        factor = "one per component" if isinstance(self._factor, Tensor) else self._factor
        if self._seed is not None:
            seed, variant, fraction = self._seed
            return f"Ablation(n={self._n}, {fraction=}, {seed=}, {variant=}, factor={factor}, form='seed')"
        return f"Ablation(n={self._n}, size={self.size}, factor={factor}, form={self.form!r})"

    def __or__(self, other: Ablation) -> Ablation:
        """Union. ValueError if a component of both has different factors."""
        return self._merge(other, operator.or_)

    def __and__(self, other: Ablation) -> Ablation:
        """Intersection. ValueError if a component of both has different factors."""
        return self._merge(other, operator.and_)

    def __sub__(self, other: Ablation) -> Ablation:
        """The components of this ablation that the other lacks, with their factors."""
        return self._merge(other, lambda left, right: left & ~right)

    def __xor__(self, other: Ablation) -> Ablation:
        """The components of exactly one of the two, with their factors."""
        return self._merge(other, operator.xor)

    def __invert__(self) -> Ablation:
        """All other components, with the same factor; ValueError if there is more than one. Held as packed bits."""
        if isinstance(self._factor, Tensor):
            raise ValueError("an ablation with one factor per component has no complement: its factors are unknown")
        words = ~self._as_words()
        words[-1] &= tail_mask(self._n)
        return Ablation(self._n, words, None, self._factor)

    def _merge(self, other: Ablation, rule: Callable[[Tensor, Tensor], Tensor]) -> Ablation:
        """The set that `rule` makes of two, given as words or as membership; packed unless both are indices."""
        if not isinstance(other, Ablation):
            return NotImplemented
        if self._n != other._n:
            raise ValueError(f"the ablations are of {self._n} and {other._n} components")
        packed = self._indices is None or other._indices is None
        if packed and same_factor(self._factor, other._factor) and not isinstance(self._factor, Tensor):
            return Ablation(self._n, rule(self._as_words(), other._as_words()), None, self._factor)

        candidates = torch.cat([self._as_indices(), other._as_indices()]).unique()
        at_left, in_left = find(self._as_indices(), candidates)
        at_right, in_right = find(other._as_indices(), candidates)
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
        if self._seed is not None:
            seed, variant, fraction = self._seed
            return seeded_mask(seed, variant, 1, self._n, fraction)[0]
        assert self._indices is not None, "a set has words, a seed or indices"
        words = torch.zeros(-(-self._n // WORD_BITS), dtype=torch.int32)
        bits = torch.ones((), dtype=torch.int32) << (self._indices % WORD_BITS).to(torch.int32)
        return words.index_add_(0, self._indices // WORD_BITS, bits)

    def _as_indices(self) -> Tensor:
        if self._indices is not None:
            return self._indices
        return set_bits(self._as_words())


def stacked_words(ablations: Sequence[Ablation | None], n: int) -> Tensor:
    """The packed sets of many ablations of n components, [len(ablations), ceil(n / 32)], int32; None is the empty set.

    Neighbours that are variants of one seed with consecutive numbers are drawn in one call.
    """
    stacked = torch.zeros(len(ablations), -(-n // WORD_BITS), dtype=torch.int32)
    begin = 0
    while begin < len(ablations):
        first = ablations[begin]
        end = begin + 1
        if first is not None and first._seed is not None:
            seed, variant, fraction = first._seed
            while end < len(ablations) and _is_drawn_from(ablations[end], (seed, variant + end - begin, fraction)):
                end += 1
            stacked[begin:end] = seeded_mask(seed, variant, end - begin, n, fraction)
        elif first is not None:
            stacked[begin] = first._as_words()
        begin = end
    return stacked


def _is_drawn_from(ablation: Ablation | None, seed: tuple[int, int, float]) -> bool:
    return ablation is not None and ablation._seed == seed
