"""Confidence intervals: for counts of hits, alone, paired or as a harmonic mean of two, and for means of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
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


def harmonic_mean(first: tuple[int, int], second: tuple[int, int]) -> float:
    """Harmonic mean of two proportions (hits, n), in 0..1; 0 where one of them is 0."""
    return _harmonic(first[0] / first[1], second[0] / second[1])


def harmonic_mean_interval(first: tuple[int, int], second: tuple[int, int], confidence: float = 0.95) -> Interval:
    """Interval for the harmonic mean of two proportions (hits, n) of different images, in 0..1.

    Raises ValueError as ``wilson``. Source: Zou and Donner 2008, Statistics in Medicine 27, 1693-1702: what moves the
    value when one proportion goes to the limit of its Wilson interval, squared and added.
    """
    value = harmonic_mean(first, second)
    intervals = (wilson(*first, confidence), wilson(*second, confidence))
    a, b = first[0] / first[1], second[0] / second[1]
    lower, upper = (
        math.hypot(value - _harmonic(p, b), value - _harmonic(a, q)) for p, q in zip(*intervals, strict=True)
    )
    return Interval(max(value - lower, 0.0), min(value + upper, 1.0))


def _harmonic(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b else 0.0


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Student's interval for the mean of independent ``values``; None where all are equal, which show no spread."""
    n = len(values)
    if len(set(values)) < 2:
        return None
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    spread = _t(n - 1, confidence) * math.sqrt(variance / n)
    return Interval(mean - spread, mean + spread)


def _t(degrees: int, confidence: float) -> float:
    """The t with probability ``confidence`` between -t and t, found by halving."""
    low, high = 0.0, 2 * _z(confidence)
    while _within(high, degrees) < confidence:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < confidence else (low, middle)
    return high


def _within(t: float, degrees: int) -> float:
    """Probability of a Student variable between -t and t.

    Source: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = 0.0
    for k in range(1 + odd, degrees, 2):
        total += term
        term *= k / (k + 1) * cosine**2
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
