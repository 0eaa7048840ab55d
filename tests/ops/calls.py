"""Ways to call an operator on the CPU: with several settings of threads, and on the backends that there are."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cad_fast.ops import backends


def with_threads(counts: tuple[int, ...], call: Callable[[], Any]) -> list[Any]:
    """The results of a call under several settings of torch's threads."""
    before = torch.get_num_threads()
    try:
        results = []
        for count in counts:
            torch.set_num_threads(count)
            results.append(call())
        return results
    finally:
        torch.set_num_threads(before)


BACKENDS = [
    pytest.param(
        "native", marks=pytest.mark.skipif(backends.native.why_not() is not None, reason="there are no native kernels")
    ),
    "reference",
]
