"""gram_bits, wherever it runs, against exact products."""

import pytest
import torch

from cad_fast.ops import gram_bits, unpack_bits
from tests.ops.bits import random_words
from tests.ops.places import Place, over

ROWS = [0, 1, 3, 4, 63, 64, 65, 131]
COLUMNS = [0, 1, 31, 32, 33, 511, 513, 16384, 16384 * 2 + 45]

some_views = pytest.mark.parametrize(
    "view", [lambda w: w.t(), lambda w: w[::2, 1:], lambda w: w.flip(1)], ids=["t", "cut", "flip"]
)


def products(words: torch.Tensor) -> torch.Tensor:
    """Of the bits, those behind the last column too; sums below 2**24 are exact in float32."""
    bits = unpack_bits(words, 32 * words.shape[1]).float()
    return (bits @ bits.T).to(torch.int32)


@pytest.mark.parametrize("n", COLUMNS)
@pytest.mark.parametrize("m", ROWS)
def test_against_exact_products(place: Place, m: int, n: int) -> None:
    words = random_words(m, (n + 31) // 32)
    found = place(gram_bits, words)
    assert found.dtype == torch.int32 and torch.equal(found, products(words))


@over(also=("reference",))
def test_full_rows(place: Place) -> None:
    assert (place(gram_bits, torch.full((5, 3000), -1, dtype=torch.int32)) == 96000).all()


@over(also=("reference",))
@some_views
def test_strides(place: Place, view) -> None:
    words = view(random_words(70, 70))
    assert torch.equal(place(gram_bits, words), products(words))
