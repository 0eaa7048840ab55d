"""count_bits, wherever it runs, against the reference."""

import pytest
import torch

from cad_fast.ops import count_bits, reference
from tests.ops.bits import LEADING, each_view, random_words, same
from tests.ops.places import Place, over, sizes


@over(width=sizes([0, 1, 33, 600], [0, 1, 2, 3, 4, 16, 17, 18, 32, 33, 129, 600]))
@pytest.mark.parametrize("leading", LEADING, ids=str)
def test_against_reference(place: Place, width: int, leading: tuple[int, ...]) -> None:
    for words in (random_words(*leading, width), torch.full((*leading, width), -1, dtype=torch.int32)):
        assert same(place(count_bits, words), reference.count_bits(words))


@each_view
def test_strides(place: Place, view) -> None:
    words = view(random_words(67, 131))
    assert same(place(count_bits, words), reference.count_bits(words))


@over(also=("reference",))
def test_vmap(place: Place) -> None:
    words = random_words(5, 4, 3)
    counts = torch.vmap(lambda w: place(count_bits, w), in_dims=1)(words)
    assert same(counts, reference.count_bits(words).t())
