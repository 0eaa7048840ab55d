"""pack_bits in Triton against the reference and the native kernel."""

import pytest
import torch

from cad_fast.ops import pack_bits

SHAPES = [(1,), (33,), (3, 77), (2, 5, 64), (0, 33), (2, 0), (70, 31)]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_words_are_those_of_the_cpu(device, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    mask = torch.randint(0, 3, shape).to(dtype)
    for given in (mask, mask.repeat_interleave(2, -1)[..., ::2]):
        words = pack_bits(given.to(device), backend="triton")
        for backend in ("native", "reference"):
            assert torch.equal(words.cpu(), pack_bits(mask, backend=backend))
