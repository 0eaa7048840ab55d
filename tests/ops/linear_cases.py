"""What the tests of the linear operators share: thread counts, and backends."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cad_fast.ops import backends


def with_threads(counts: tuple[int, ...], call: Callable[[], Tensor]) -> list[Tensor]:
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
