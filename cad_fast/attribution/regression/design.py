"""Many ablations as the matrix of a regression, held as packed bits or as the seed that they are drawn from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ...components.ablation import Ablation, stacked_words
from ...ops.on_host import bits_linear, gram_bits, pack_bits, seeded_mask, unpack_bits

# Elements of the design that are unpacked at a time, as float64: 256 MiB.
CHUNK = 2**25
# Words that are drawn at a time: 64 MiB.
DRAWN_WORDS = 2**24


class Design:
    """m random ablations of n components as X [m, n], centred on use: x_ri is what ablation r keeps of component i.

    Products with X cost one pass over the bits. Nothing of the size m * n is held but the bits themselves.

    Args:
        words: int32 [m, ceil(n / 32)], a bit per ablated component.
        n: How many components there are.
        factor: What ablated components keep.
    """

    def __init__(self, words: Tensor, n: int, factor: float = 0.0) -> None:
        self._words, self.n, self.factor = words, n, factor
        self._means: Tensor | None = None

    @classmethod
    def of(cls, ablations: Sequence[Ablation]) -> Design:
        """Make the design of these ablations.

        Raises:
            ValueError: There are none, or their n or factor differ.
        """
        if not len(ablations):
            raise ValueError("a regression needs ablations, got none")
        first = ablations[0]
        if isinstance(first.factor, Tensor):
            raise ValueError("a regression needs ablations with one factor, got one factor per component")
        words = torch.empty(len(ablations), -(-first.n // 32), dtype=torch.int32)
        step = max(1, DRAWN_WORDS // words.shape[1])
        for start in range(0, len(ablations), step):
            part = ablations[start : start + step]
            for number, ablation in enumerate(part, start):
                if ablation.n != first.n:
                    raise ValueError(f"ablation {number} is of {ablation.n} components, the first of {first.n}")
                if ablation.factor != first.factor:
                    raise ValueError(f"ablation {number} has factor {ablation.factor}, the first {first.factor}")
            words[start : start + len(part)] = stacked_words(part, first.n)
        return cls(words, first.n, first.factor)

    def __len__(self) -> int:
        return len(self._words)

    @property
    def words(self) -> Tensor:
        """int32 [m, ceil(n / 32)]."""
        return self._words

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield blocks of rows, with their words."""
        yield slice(0, len(self)), self.words

    def select(self, rows: Tensor) -> Design:
        """Return the design of some of the ablations, int64 [k] or bool [m]."""
        return Design(self.words[rows], self.n, self.factor)

    @property
    def ablated_mean(self) -> Tensor:
        """The share of the ablations that removes each component, float64 [n]."""
        if self._means is None:
            self._means = self._sums_of_columns(torch.ones(1, len(self), dtype=torch.float64))[0] / len(self)
        return self._means

    def _sums_of_columns(self, values: Tensor) -> Tensor:
        total = torch.zeros(len(values), self.n, dtype=torch.float64)
        for rows, words in self.blocks():
            total += bits_linear(values[:, rows], words, self.n, True)
        return total

    def columns(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield blocks of columns of the centred design, float64 [m, columns]."""
        words = self.words
        step = max(1, CHUNK // (32 * max(1, len(self)))) * 32
        for start in range(0, self.n, step):
            count = min(step, self.n - start)
            bits = unpack_bits(words[:, start // 32 : (start + count + 31) // 32], count).double()
            place = slice(start, start + count)
            yield place, (self.factor - 1) * (bits - self.ablated_mean[place])

    def counts(self) -> Tensor:
        """Return how many components each two ablations have in common, int32 [m, m]."""
        return gram_bits(self.words)

    def transposed(self) -> Tensor:
        """Return the bits by component, int32 [n, ceil(m / 32)]."""
        words = self.words
        step = max(1, CHUNK // (32 * max(1, len(self)))) * 32
        parts = []
        for start in range(0, self.n, step):
            count = min(step, self.n - start)
            parts.append(pack_bits(unpack_bits(words[:, start // 32 : (start + count + 31) // 32], count).T))
        return torch.cat(parts)

    def transposed_times(self, values: Tensor) -> Tensor:
        """Return values X of the centred design, float64 [n] or [t, n], for [m] or [t, m]."""
        if values.dim() == 1:
            return self.transposed_times(values[None])[0]
        values = values.double()
        return (self.factor - 1) * (self._sums_of_columns(values) - values.sum(1, keepdim=True) * self.ablated_mean)

    def times(self, alpha: Tensor) -> Tensor:
        """Return X alpha of the centred design, float64 [m] or [t, m]: predictions less their mean."""
        if alpha.dim() == 1:
            return self.times(alpha[None])[0]
        alpha = alpha.double()
        lost = torch.cat([bits_linear(alpha, words, self.n) for _, words in self.blocks()], 1)
        return (self.factor - 1) * (lost - (alpha @ self.ablated_mean)[:, None])

    def mean_kept(self) -> Tensor:
        """Return the mean of x_ri over the ablations, float64 [n]."""
        return 1 + (self.factor - 1) * self.ablated_mean


class SeededDesign(Design):
    """The design of ``Ablation.seeded(n, fraction, seed, variant)`` for m consecutive variants, of which it holds none.

    Every product draws the bits anew, so that m and n are bounded by time alone. What needs all of the bits at once
    (``words``, ``select``, ``counts``: every solver but lsmr) draws them into memory.

    Args:
        n: How many components there are.
        fraction: The probability of each.
        seed: As for ``Ablation.seeded``.
        m: How many variants there are.
        first: The number of the first variant.
        factor: What ablated components keep.
    """

    def __init__(self, n: int, fraction: float, seed: int, m: int, first: int = 0, factor: float = 0.0) -> None:
        super().__init__(torch.empty(0, dtype=torch.int32), n, factor)
        self.fraction, self.seed, self.m, self.first = fraction, seed, m, first

    def __len__(self) -> int:
        return self.m

    @property
    def words(self) -> Tensor:
        return seeded_mask(self.seed, self.first, self.m, self.n, self.fraction)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        step = max(1, DRAWN_WORDS * 32 // max(1, self.n))
        for start in range(0, self.m, step):
            count = min(step, self.m - start)
            words = seeded_mask(self.seed, self.first + start, count, self.n, self.fraction)
            yield slice(start, start + count), words
