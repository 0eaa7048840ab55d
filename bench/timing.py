"""Interleaved timing: the contenders take turns, so that a slow moment of the machine hits all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

Contenders = Mapping[str, Callable[[], object]]


def interleaved_medians(contenders: Contenders, seconds: float = 1.0, minimum: int = 5) -> dict[str, float]:
    """Median seconds per call of each contender.

    Everyone runs twice unmeasured, then one call of each in turn until ``seconds`` per contender are spent on average
    and ``minimum`` rounds are done. Contenders much slower than the fastest sit out rounds, so that they do not eat
    the time of all; they run at least 3 times.
    """
    first = {}
    for name, call in contenders.items():
        call()
        first[name] = _timed(call)
    total = seconds * len(contenders)
    slow = {name for name in contenders if first[name] > total / 10}
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    spent, rounds = 0.0, 0
    while spent < total or rounds < minimum:
        for name, call in contenders.items():
            if name in slow and rounds >= 3:
                continue
            duration = _timed(call)
            samples[name].append(duration)
            spent += duration
        rounds += 1
        if len(slow) == len(contenders) and rounds >= minimum:
            break
    return {name: statistics.median(values) for name, values in samples.items()}


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
