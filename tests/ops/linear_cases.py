"""What the tests of the linear operators share: tolerances that follow plain torch's own error, and thread counts."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cad_fast.ops import _native


def assert_as_good_as_torch(actual: Tensor, plain: Tensor, exact: Tensor) -> None:
    """The error of `actual` against the float64 result is at most about twice that of plain torch."""
    assert actual.shape == exact.shape and actual.dtype == plain.dtype
    assert actual.isfinite().all()
    if exact.numel() == 0:
        return
    error = (actual.double() - exact).abs()
    allowed = (plain.double() - exact).abs()
    floor = torch.finfo(actual.dtype).eps * exact.abs().mean()
    assert error.max() <= 2 * allowed.max() + 4 * floor
    assert error.mean() <= 2 * allowed.mean() + floor


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
        "native", marks=pytest.mark.skipif(_native.why_not() is not None, reason="there are no native kernels")
    ),
    "reference",
]
