"""pack_bits, wherever it runs, against the reference."""

import pytest
import torch

from cad_fast.ops import pack_bits, reference
from tests.ops.bits import LEADING, each_view, random_mask, same
from tests.ops.places import Place, over, sizes

lengths = sizes([0, 1, 31, 33, 64, 77], [0, 1, 7, 31, 32, 33, 63, 64, 65, 95, 96, 97, 512, 545, 1000, 4097])


@over(n=lengths)
@pytest.mark.parametrize("leading", LEADING, ids=str)
def test_against_reference(place: Place, n: int, leading: tuple[int, ...]) -> None:
    mask = random_mask(*leading, n)
    assert same(place(pack_bits, mask), reference.pack_bits(mask))


def test_any_nonzero_byte_counts_as_set(place: Place) -> None:
    mask = torch.arange(256, dtype=torch.uint8).repeat(3)[5:-3]
    assert same(place(pack_bits, mask), reference.pack_bits(mask != 0))


@each_view
@pytest.mark.parametrize("of", [torch.bool, torch.uint8], ids=str)
def test_strides(place: Place, view, of: torch.dtype) -> None:
    mask = view(torch.randint(0, 3, (67, 131)).to(of))
    assert same(place(pack_bits, mask), reference.pack_bits(mask != 0))


@over(also=("reference",))
def test_vmap(place: Place) -> None:
    mask = random_mask(4, 70, 5)
    words = torch.vmap(lambda m: place(pack_bits, m), in_dims=2)(mask)
    assert same(words, reference.pack_bits(mask.permute(2, 0, 1)))
