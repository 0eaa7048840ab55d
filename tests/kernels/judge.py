"""Whether what a Triton kernel gave is right, by the bounds of `tests.rounding`."""

from torch import Tensor

from cad_fast import envs
from tests.rounding import PRODUCTS, Exact
from tests.rounding import assert_right as assert_right_for


def assert_right(actual: Tensor, exact: Exact) -> None:
    """As `tests.rounding.assert_right`, for the way of multiplying float32 that is in force."""
    assert_right_for(actual, exact, PRODUCTS[envs.get("CAD_FAST_FLOAT32_PRECISION")])
