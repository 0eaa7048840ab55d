"""Intervals against published values, and against what must hold for any counts."""

from __future__ import annotations

import itertools
import random

import pytest

from cad_fast.evaluation import PairedCounts, paired_difference, paired_ratio, wilson
from cad_fast.evaluation.intervals import harmonic_mean, harmonic_mean_interval, mean_interval

# Complete response before and after consolidation therapy (Cavo et al. 2012) and airway hyper-responsiveness before
# and after stem cell transplantation (Bentur et al. 2009), as in Fagerland, Lydersen and Laake, "Statistical Analysis
# of Contingency Tables" (2017), chapter 8; the limits are those of the book's R package, contingencytables.
CAVO = PairedCounts(both=59, only_before=16, only_after=6, neither=80)
BENTUR = PairedCounts(both=1, only_before=7, only_after=1, neither=12)


@pytest.mark.parametrize(
    "hits, n, expected",
    # Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3.
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_wilson_gives_newcombes_published_limits(hits, n, expected):
    assert wilson(hits, n) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("n", [1, 16, 1000])
def test_wilson_is_exact_at_the_ends_and_symmetric(n):
    assert wilson(0, n).lower == 0 and wilson(n, n).upper == 1
    for hits in range(0, n + 1, max(1, n // 16)):
        lower, upper = wilson(hits, n)
        assert lower <= hits / n <= upper
        assert wilson(n - hits, n) == pytest.approx((1 - upper, 1 - lower))


def test_paired_difference_gives_the_published_limits():
    assert paired_difference(CAVO) == pytest.approx((-0.1186, -0.0046), abs=5e-5)
    assert paired_difference(BENTUR) == pytest.approx((-0.507, -0.026), abs=5e-4)


def test_paired_ratio_gives_the_published_limits():
    assert paired_ratio(CAVO) == pytest.approx((0.7579, 0.9910), abs=5e-5)


def test_paired_intervals_hold_the_estimate_and_swap_sides():
    for counts in itertools.product((0, 1, 4, 11), repeat=4):
        if not any(counts):
            continue
        pairs = PairedCounts(*counts)
        swapped = PairedCounts(pairs.both, pairs.only_after, pairs.only_before, pairs.neither)
        lower, upper = paired_difference(pairs)
        assert -1 <= lower <= (pairs.after - pairs.before) / pairs.n <= upper <= 1, counts
        assert paired_difference(swapped) == pytest.approx((-upper, -lower)), counts
        ratio = paired_ratio(pairs)
        if pairs.before == 0:
            assert ratio is None
            continue
        assert 0 <= ratio.lower <= pairs.after / pairs.before <= ratio.upper, counts
        if ratio.lower:
            assert paired_ratio(swapped) == pytest.approx((1 / ratio.upper, 1 / ratio.lower)), counts


def test_intervals_narrow_with_the_number_of_pairs():
    wide, narrow = CAVO, PairedCounts(590, 160, 60, 800)
    for interval in (paired_difference, paired_ratio):
        assert interval(narrow).upper - interval(narrow).lower < interval(wide).upper - interval(wide).lower


@pytest.mark.parametrize("hits, n", [(1, 0), (-1, 4), (5, 4)])
def test_impossible_counts_are_refused(hits, n):
    with pytest.raises(ValueError, match=f"{hits} hits among {n}"):
        wilson(hits, n)


def test_impossible_pairs_and_confidences_are_refused():
    for counts in ((0, 0, 0, 0), (3, -1, 0, 0)):
        with pytest.raises(ValueError, match="must not be negative, nor all be zero"):
            PairedCounts(*counts)
    with pytest.raises(ValueError, match="confidence is 95"):
        wilson(1, 2, confidence=95)


@pytest.mark.parametrize("n", [2, 3, 12, 201])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_interval_of_a_mean_is_scipys(n, confidence):
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    generator = random.Random(n)
    values = [generator.gauss(3, 2) for _ in range(n)]
    expected = stats.ttest_1samp(values, 0).confidence_interval(confidence)
    assert mean_interval(values, confidence) == pytest.approx(tuple(expected))


def test_equal_values_show_no_spread():
    assert mean_interval([1.0]) is None and mean_interval([2.0, 2.0, 2.0]) is None


def test_the_harmonic_mean_lies_in_its_interval_and_is_symmetric():
    assert harmonic_mean((1, 2), (3, 4)) == pytest.approx(0.6)
    assert harmonic_mean((0, 5), (5, 5)) == 0 and harmonic_mean((0, 5), (0, 5)) == 0
    for a, b in itertools.product([(0, 9), (1, 9), (5, 9), (9, 9)], [(0, 80), (40, 80), (80, 80)]):
        lower, upper = harmonic_mean_interval(a, b)
        assert 0 <= lower <= harmonic_mean(a, b) <= upper <= 1
        assert harmonic_mean_interval(b, a) == pytest.approx((lower, upper))


def test_the_interval_of_a_harmonic_mean_covers_what_it_says():
    """Coverage by simulation: .95 of the draws, up to the coarseness of counts and three standard errors."""
    generator = random.Random(0)
    first, second, truth = (0.7, 24), (0.9, 60), 2 * 0.7 * 0.9 / 1.6
    draws, covered = 1000, 0
    for _ in range(draws):
        counts = [(sum(generator.random() < p for _ in range(n)), n) for p, n in (first, second)]
        lower, upper = harmonic_mean_interval(*counts)
        covered += lower <= truth <= upper
    assert 0.93 <= covered / draws <= 0.975
