"""gated_conv2d on the CPU: threads, and errors. What is right: cases/test_gated_conv2d.py."""

import pytest
import torch
from torch.nn.functional import conv2d

from cad_fast.ops import gated_conv2d, reference
from tests.ops import exact
from tests.ops.calls import with_threads
from tests.ops.cases.test_gated_conv2d import inputs
from tests.ops.cases.test_masked_conv2d import SIZES
from tests.ops.convolutions import GEOMETRIES, SAME, channels_last, with_channels_last
from tests.rounding import assert_right


def test_the_reference_is_what_the_docstring_says() -> None:
    x, weight, gates, bias = (t.double() for t in inputs(SIZES[2], torch.float32))
    y = reference.gated_conv2d(x, weight, gates, bias, *SAME)
    for v, own in enumerate(gates):
        torch.testing.assert_close(y[v], conv2d(x[v], weight * own[:, None, None, None], bias, padding=1))


@pytest.mark.parametrize("last", ["x", "weight", "both"])
def test_the_automatic_choice_keeps_channels_last(last: str) -> None:
    x, weight, gates, bias = inputs(SIZES[3], torch.float32)
    right = exact.gated_conv2d(x, weight, gates, bias, *SAME)
    y = gated_conv2d(*with_channels_last(x, weight, last), gates, bias, padding=1)
    assert_right(y, right)
    assert y[0].is_contiguous(memory_format=torch.channels_last)


def test_threads_do_not_matter(capability: str) -> None:
    x, weight, gates, bias = inputs((3, 2, 6, 40, 40, 66, 1, 1), torch.float32)
    for last in (False, True):
        x = channels_last(x) if last else x
        right = exact.gated_conv2d(x, weight, gates, bias, *GEOMETRIES["plain"])
        for y in with_threads((1, 2, 3), lambda: gated_conv2d(x, weight, gates, bias, backend="native")):  # noqa: B023
            assert_right(y, right)


X, WEIGHT, GATES = torch.zeros(2, 1, 4, 6, 6), torch.zeros(5, 4, 3, 3), torch.zeros(2, 5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X.tolist(), WEIGHT, GATES), TypeError, "x must be a tensor, got list"),
        ((X, WEIGHT, GATES.double()), TypeError, "gates must have dtype torch.float32, got torch.float64"),
        ((X, WEIGHT, GATES[:, :4]), ValueError, r"gates must be \[2, 5\], got \[2, 4\]"),
        ((X, WEIGHT, GATES[:1]), ValueError, r"gates must be \[2, ...\], one row per variant of x, got \[1, 5\]"),
        ((X, WEIGHT, GATES.to("meta")), ValueError, "gates must be on cpu like x, got meta"),
        ((X[0], WEIGHT, GATES), ValueError, "x must have 5 dimensions"),
        ((X, WEIGHT, GATES, torch.zeros(4)), ValueError, r"bias must have shape \[5\], got \[4\]"),
    ],
)
def test_errors_name_the_argument(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gated_conv2d(*arguments)
