"""Confidence intervals for counts of hits: one proportion, and the difference and the ratio of two paired ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple


class Interval(NamedTuple):
    """Lower and upper limit."""

    lower: float
    upper: float


@dataclass(frozen=True)
class PairedCounts:
    """Images counted by whether they were hits before and after: the two outcomes belong to the same seed."""

    both: int
    only_before: int
    only_after: int
    neither: int

    def __post_init__(self) -> None:
        counts = (self.both, self.only_before, self.only_after, self.neither)
        if min(counts) < 0 or sum(counts) == 0:
            raise ValueError(f"counts of pairs must not be negative, nor all be zero: {counts}")

    @property
    def n(self) -> int:
        return self.both + self.only_before + self.only_after + self.neither

    @property
    def before(self) -> int:
        """Hits before."""
        return self.both + self.only_before

    @property
    def after(self) -> int:
        """Hits after."""
        return self.both + self.only_after


def _z(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, expected a number between 0 and 1")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _score_interval(hits: int, n: int, z: float) -> Interval:
    centre = hits + z * z / 2
    spread = z * math.sqrt(hits * (n - hits) / n + z * z / 4)
    # Exact at the ends, where rounding would leave 1e-17 instead of 0.
    lower = 0.0 if hits == 0 else (centre - spread) / (n + z * z)
    upper = 1.0 if hits == n else (centre + spread) / (n + z * z)
    return Interval(lower, upper)


def wilson(hits: int, n: int, confidence: float = 0.95) -> Interval:
    """Score interval for the proportion ``hits`` / ``n``.

    Raises ValueError when n is 0 or hits are not in 0..n. Source: Wilson 1927, J. Am. Stat. Assoc. 22, 209-212.
    """
    if n < 1 or not 0 <= hits <= n:
        raise ValueError(f"{hits} hits among {n}: expected at least one trial, and 0 to n hits")
    return _score_interval(hits, n, _z(confidence))


def _correlation(pairs: PairedCounts) -> float:
    """Phi coefficient of the 2x2 table; where it is positive, with Newcombe's continuity correction."""
    product = pairs.before * (pairs.n - pairs.before) * pairs.after * (pairs.n - pairs.after)
    if product == 0:
        return 0.0
    determinant: float = pairs.both * pairs.neither - pairs.only_before * pairs.only_after
    if determinant > 0:
        determinant = max(determinant - pairs.n / 2, 0)
    return determinant / math.sqrt(product)


def paired_difference(pairs: PairedCounts, confidence: float = 0.95) -> Interval:
    """Interval for the proportion of hits after minus that before, in -1..1.

    Source: Newcombe 1998, Statistics in Medicine 17, 2635-2650, method 10 (two Wilson intervals, squared and added,
    with the correlation of the pairs).
    """
    z = _z(confidence)
    after, before = pairs.after / pairs.n, pairs.before / pairs.n
    l1, u1 = _score_interval(pairs.after, pairs.n, z)
    l2, u2 = _score_interval(pairs.before, pairs.n, z)
    phi = _correlation(pairs)

    def distance(a: float, b: float) -> float:
        return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))

    return Interval(
        max(after - before - distance(after - l1, u2 - before), -1.0),
        min(after - before + distance(u1 - after, before - l2), 1.0),
    )


def paired_ratio(pairs: PairedCounts, confidence: float = 0.95) -> Interval | None:
    """Interval for the proportion of hits after over that before; None without hits before, the ratio being undefined.

    Source: Bonett and Price 2006, Statistics in Medicine 25, 3039-3047 (two Wilson intervals, with z adjusted to the
    correlation of the pairs).
    """
    if pairs.before == 0:
        return None
    n = pairs.both + pairs.only_before + pairs.only_after
    after, before = (pairs.after + 1) / (n + 2), (pairs.before + 1) / (n + 2)
    joint = math.sqrt((pairs.only_before + pairs.only_after + 2) / ((pairs.after + 1) * (pairs.before + 1)))
    separate = math.sqrt((1 - after) / (pairs.after + 1)) + math.sqrt((1 - before) / (pairs.before + 1))
    z = _z(confidence) * joint / separate
    l1, u1 = _score_interval(pairs.after, n, z)
    l2, u2 = _score_interval(pairs.before, n, z)
    return Interval(l1 / u2, u1 / l2)
