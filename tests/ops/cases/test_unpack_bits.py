"""unpack_bits, wherever it runs, against the reference."""

import pytest
import torch

from cad_fast.ops import reference, unpack_bits
from tests.ops.bits import LEADING, each_view, random_words, same
from tests.ops.cases.test_pack_bits import lengths
from tests.ops.places import Place, over


@over(n=lengths)
@pytest.mark.parametrize("leading", LEADING, ids=str)
def test_against_reference(place: Place, n: int, leading: tuple[int, ...]) -> None:
    """Bits behind the last element are ignored."""
    words = random_words(*leading, (n + 31) // 32)
    mask = place(unpack_bits, words, n)
    assert mask.dtype == torch.bool and same(mask, reference.unpack_bits(words, n))


@each_view
def test_strides(place: Place, view) -> None:
    words = view(random_words(67, 131))
    n = 32 * words.shape[-1] - 5
    assert same(place(unpack_bits, words, n), reference.unpack_bits(words, n))


@over(also=("reference",))
def test_vmap(place: Place) -> None:
    words = random_words(5, 4, 3)
    mask = torch.vmap(lambda w: place(unpack_bits, w, 70))(words)
    assert same(mask, reference.unpack_bits(words, 70))
