"""What the cases of the operators on bits share."""

import pytest
import torch

LEADING = [(), (1,), (3,), (2, 5), (0,), (2, 0, 3), (70,)]

each_view = pytest.mark.parametrize(
    "view",
    [
        lambda x: x.t(),
        lambda x: x[:, ::2],
        lambda x: x[1:, 3:],
        lambda x: x[:1].expand(4, -1),
        lambda x: x.flip(1),
        lambda x: x.repeat_interleave(2, -1)[..., ::2],
    ],
    ids=["transposed", "every-second", "offset", "expanded", "flipped", "spread"],
)


def random_mask(*shape: int) -> torch.Tensor:
    """Of any share of set bits."""
    return torch.rand(shape) < torch.rand(())


def random_words(*shape: int) -> torch.Tensor:
    """All bits are random, those behind the last element too."""
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int64).to(torch.int32)


def same(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether dtypes, shapes and values are equal."""
    return actual.dtype == expected.dtype and actual.shape == expected.shape and torch.equal(actual, expected)
