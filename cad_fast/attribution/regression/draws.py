"""Random ablations, held as the few numbers that they are drawn from."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...choices import Draw
from ...components.ablation import Ablation
from .design import Design, SeededDesign


@dataclass(frozen=True)
class Drawn(Sequence[Ablation]):
    """Random ablations, made when they are asked for.

    Args:
        draw: "partitions" for disjoint ablations that cover all components, 1 / fraction of them, again and again with
            the seeds that follow. "bernoulli" for every component with probability ``fraction`` (``Ablation.seeded``,
            variant by variant).
        n: How many components there are.
        fraction: The share of them that an ablation removes.
        seed: Draws other ablations.
        count: How many there are.
    """

    draw: Draw
    n: int
    fraction: float
    seed: int
    count: int  # type: ignore[assignment]  # hides Sequence.count, of which draws have no use

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(self.count))]
        number = place if place >= 0 else self.count + place
        if not 0 <= number < self.count:
            raise IndexError(f"ablation {place} of {self.count}")
        if self.draw == "bernoulli":
            return Ablation.seeded(self.n, self.fraction, self.seed, number)
        partition, part = divmod(number, self.parts)
        return _partition(self.n, self.parts, self.seed + partition)[part]

    @property
    def parts(self) -> int:
        """How many ablations a partition has."""
        return parts_of(self.fraction, self.n)

    def design(self, count: int | None = None, *, in_memory: bool = True) -> Design:
        """Return the design of the first ``count`` (None for all).

        Args:
            count: How many ablations it has.
            in_memory: Whether it holds packed bits. If not, "bernoulli" ablations are held as their seed.
        """
        count = self.count if count is None else count
        if self.draw == "bernoulli" and not in_memory:
            return SeededDesign(self.n, self.fraction, self.seed, count)
        return Design.of(Drawn(self.draw, self.n, self.fraction, self.seed, count))


# One is kept: ablations are asked for in their order, and a partition of a million components takes 8 MB.
@functools.lru_cache(maxsize=1)
def _partition(n: int, parts: int, seed: int) -> list[Ablation]:
    return Ablation.balanced_partition(n, parts, seed)


def parts_of(fraction: float, n: int) -> int:
    """Return how many disjoint ablations of this fraction cover n components, each with at least one component.

    Raises:
        ValueError: ``fraction`` is not in (0, 0.5], or there is one component only.
    """
    if not 0 < fraction <= 0.5:
        raise ValueError(f"fraction is {fraction}, expected more than 0 and at most 0.5")
    if n < 2:
        raise ValueError("there is one component only, which no two ablations can share out: use method='exact'")
    return min(round(1 / fraction), n)
