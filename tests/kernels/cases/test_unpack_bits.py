"""unpack_bits in Triton against the reference."""

import pytest
import torch

from cad_fast.ops import unpack_bits

SHAPES = [
    ((1,), 1),
    ((2,), 33),
    ((3, 3), 77),
    ((2, 5, 2), 64),
    ((0, 2), 33),
    ((2, 0), 0),
    ((70, 1), 31),
    ((2, 40), 1271),
]


@pytest.mark.parametrize(("shape", "n"), SHAPES, ids=str)
def test_masks_are_those_of_the_reference(device, shape: tuple[int, ...], n: int) -> None:
    words = torch.randint(-(2**31), 2**31, shape).int()
    for given in (words, words.repeat_interleave(2, -1)[..., ::2]):
        mask = unpack_bits(given.to(device), n, backend="triton")
        assert mask.dtype == torch.bool
        assert torch.equal(mask.cpu(), unpack_bits(words, n, backend="reference"))
