"""count_bits in Triton against the reference."""

import pytest
import torch

from cad_fast.ops import count_bits

SHAPES = [(1,), (33,), (3, 77), (2, 5, 6), (0, 3), (2, 0), (1, 600)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_counts_are_those_of_the_reference(device, shape: tuple[int, ...]) -> None:
    words = torch.randint(-(2**31), 2**31, shape).int()
    for given in (words, words.t() if words.dim() == 2 else words, torch.full(shape, -1).int()):
        counts = count_bits(given.to(device), backend="triton")
        assert torch.equal(counts.cpu(), count_bits(given, backend="reference"))
