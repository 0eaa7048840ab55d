"""Times on a GPU: replays of a CUDA graph over inputs that are not in L2, and the host's own time for a call."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from .worker import Worker

Call = Callable[[], object]

EAGER = "~"
"""Marks a time of calls that were launched one by one, as no graph of them can be captured."""
MOST_SAMPLES, LEAST_SAMPLES = 40, 3
MOST_SETS = 8
HOST_SECONDS = 0.03


class Time(NamedTuple):
    """Microseconds per call, and how they were taken."""

    us: float
    mark: str = ""
    why: str = ""
    """Why there is no graph."""


def capture(run: Call) -> tuple[Any, str]:
    """A CUDA graph of what was run before, or None and the reason."""
    before = torch.cuda.current_stream()
    try:
        # What waits for the device is found before the capture, which such a call would leave half done.
        torch.cuda.set_sync_debug_mode("error")
        run()
    except RuntimeError as error:
        return None, f"it waits for the device: {str(error)[:300]}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            run()
    except Exception as error:
        torch.cuda.set_stream(before)  # a capture that fails leaves torch on the stream of the capture
        torch.cuda.synchronize()
        return None, f"no capture: {str(error)[:300]}"
    return graph, ""


def gpu_time(worker: Worker, calls: Sequence[Call], seconds: float, graph: bool = True) -> Time:
    """The median time of a call; `calls` do the same on different inputs, in turns.

    Args:
        worker: whose device it is.
        calls: what is measured.
        seconds: how long samples are taken.
        graph: whether to try a graph.
    """
    for call in calls:
        call()
    calls[0]()
    worker.synchronize()
    if worker.dry:
        return Time(_wall(calls), EAGER, "a CPU has no graphs")

    def all_calls() -> None:
        for call in calls:
            call()

    captured, why = capture(all_calls) if graph else (None, "not tried")
    if captured is not None:
        return Time(_between_events(captured.replay, seconds) / len(calls))
    once = _between_events(all_calls, 0.0)
    # Many calls between two events, so that the launch of the first one is not what is measured.
    rounds = max(1, min(50, int(2000 / max(once, 1.0))))

    def many_calls() -> None:
        for _ in range(rounds):
            all_calls()

    return Time(_between_events(many_calls, seconds) / (rounds * len(calls)), EAGER, why)


def host_time(worker: Worker, call: Call, us: float) -> float:
    """Microseconds that the host takes for a call when it does not wait for the device."""
    # No more calls than the device takes up without making the host wait for room in its queue.
    count = max(5, min(50, int(HOST_SECONDS * 1e6 / max(us, 1.0))))
    worker.synchronize()
    begin = time.perf_counter()
    for _ in range(count):
        call()
    seconds = time.perf_counter() - begin
    worker.synchronize()
    return 1e6 * seconds / count


def wall_time(worker: Worker, call: Call, rounds: int) -> float:
    """Median microseconds of a call that is waited for; fewer rounds where the time is short."""
    call()
    samples: list[float] = []
    for _ in range(rounds):
        if samples and worker.left() < 2 * samples[-1] / 1e6:
            break
        worker.synchronize()
        begin = time.perf_counter()
        call()
        worker.synchronize()
        samples.append(1e6 * (time.perf_counter() - begin))
    return statistics.median(samples)


def sets_for(worker: Worker, size: int) -> int:
    """How many sets of inputs of so many bytes it takes for none to be in L2 when its turn comes again."""
    if worker.dry or worker.warming:
        return 1
    l2 = torch.cuda.get_device_properties(worker.device).L2_cache_size
    return max(1, min(MOST_SETS, -(-3 * l2 // max(1, size))))


def _between_events(run: Call, seconds: float) -> float:
    """Median microseconds of a run by the device's own clock."""
    run()
    torch.cuda.synchronize()
    samples, end = [], time.monotonic() + seconds
    while len(samples) < LEAST_SAMPLES or (len(samples) < MOST_SAMPLES and time.monotonic() < end):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        run()
        last.record()
        last.synchronize()
        samples.append(1e3 * first.elapsed_time(last))
    return statistics.median(samples)


def _wall(calls: Sequence[Call]) -> float:
    begin = time.perf_counter()
    for call in calls:
        call()
    return 1e6 * (time.perf_counter() - begin) / len(calls)
