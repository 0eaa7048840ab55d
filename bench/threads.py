"""What a second thread brings, and whether our loops and torch's get in each other's way when they alternate."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .timing import interleaved_medians


def scaling(call: Callable[[], object], seconds: float) -> float:
    """Median time of the call on one thread, divided by that on all of torch's threads."""
    threads = torch.get_num_threads()

    def single() -> None:
        torch.set_num_threads(1)
        call()
        torch.set_num_threads(threads)

    medians = interleaved_medians({"one": single, "all": call}, seconds)
    return medians["one"] / medians["all"]


def alternation(ours: Callable[[], object], theirs: Callable[[], object], seconds: float) -> float:
    """Time of both calls in turn, divided by the sum of their times when each is repeated alone.

    About 1 if both use the same threads; a second pool of threads that spin on the same cores would show as more.
    """

    def repeated(call: Callable[[], object]) -> Callable[[], None]:
        return lambda: [call() for _ in range(10)]

    def in_turn() -> None:
        for _ in range(10):
            ours()
            theirs()

    medians = interleaved_medians({"ours": repeated(ours), "theirs": repeated(theirs), "in turn": in_turn}, seconds)
    return medians["in turn"] / (medians["ours"] + medians["theirs"])
