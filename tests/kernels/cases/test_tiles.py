"""The two ways to ablate a tile give the same bits: by PTX on pairs of elements, and one by one.

In the interpreter it is the PTX as `tests.kernels.interpreter` computes it, which checks its operands and its tables.
"""

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from cad_fast.kernels.tiles import ablate_elements, ablate_pairs, spread, times

BM, BD = 64, 128


@triton.jit
def ablate_kernel(
    tile_at, words_at, by_pairs, by_elements, factor, rows, depth,
    ALONG_M: tl.constexpr, OWN: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    m, d = tl.arange(0, BM), tl.arange(0, BD)
    at = m[:, None] * BD + d[None, :]
    inside = (m < rows)[:, None] & (d < depth)[None, :]
    tile = tl.load(tile_at + at, mask=inside, other=0.0)
    if ALONG_M:
        words = tl.load(words_at + tl.arange(0, BM // 32)[:, None] * BD + d[None, :])
    else:
        words = tl.load(words_at + m[:, None] * (BD // 32) + tl.arange(0, BD // 32)[None, :])
    words, places = spread(words, BM, BD, ALONG_M)
    if OWN:
        # Each element of a pair with a word and a place of its own.
        places = (m[:, None] * 5 + d[None, :] * 7) % 32
    scaled = None if factor is None else times(tile, tl.load(factor))
    tl.store(by_pairs + at, ablate_pairs(tile, words, places, inside, scaled))
    tl.store(by_elements + at, ablate_elements(tile, words, places, inside, scaled))


def awkward(dtype: torch.dtype) -> Tensor:
    """Ordinary numbers, and at every third place zeros of both signs, infinities, NaN, and the least there is."""
    tile = torch.randn(BM, BD).to(dtype)
    special = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan"), torch.finfo(dtype).smallest_normal])
    tile.view(-1)[::3] = special.to(dtype)[torch.randint(len(special), (tile.view(-1)[::3].numel(),))]
    return tile


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("words_of", ["plain", "transposed", "own", "transposed-own"])
@pytest.mark.parametrize("factor", [None, 0.3, -1.5, float("inf")], ids=str)
@pytest.mark.parametrize("ends", [(BM, BD), (BM - 7, BD - 3)], ids=str)
def test_both_ways_give_the_same_bits(device, dtype: torch.dtype, words_of: str, factor, ends: tuple[int, int]) -> None:
    along_m = "transposed" in words_of
    tile = awkward(dtype).to(device)
    words = torch.randint(-(2**31), 2**31, (BM // 32, BD) if along_m else (BM, BD // 32)).int().to(device)
    given = None if factor is None else torch.tensor([factor], device=device)
    by_pairs, by_elements = torch.empty(2, BM, BD, dtype=dtype, device=device)
    ablate_kernel[(1,)](
        tile, words, by_pairs, by_elements, given, *ends, ALONG_M=along_m, OWN="own" in words_of, BM=BM, BD=BD
    )
    assert torch.equal(bits(by_pairs), bits(by_elements))
    if factor is None and words_of == "plain":
        kept = (words[..., None] >> torch.arange(32, device=device).int() & 1).flatten(1) == 0
        kept[ends[0] :], kept[:, ends[1] :] = False, False
        assert torch.equal(bits(by_pairs), torch.where(kept, bits(tile), 0))
