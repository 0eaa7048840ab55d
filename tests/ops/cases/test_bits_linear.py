"""bits_linear, wherever it runs, against the reference."""

import pytest
import torch

from cad_fast.ops import bits_linear, reference
from tests.ops.bits import random_words
from tests.ops.cases.test_gram_bits import some_views
from tests.ops.places import Place

rows_and_columns = pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])


def check(place: Place, x: torch.Tensor, words: torch.Tensor, n: int, transposed: bool) -> None:
    """Right to nearly all digits of float64."""
    found = place(bits_linear, x, words, n, transposed)
    torch.testing.assert_close(found, reference.bits_linear(x, words, n, transposed), rtol=1e-12, atol=1e-12)


@rows_and_columns
@pytest.mark.parametrize("t", [1, 4, 7])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 33), (300, 70), (65, 1500), (258, 545), (0, 40), (5, 0)])
def test_against_reference(place: Place, m: int, n: int, t: int, transposed: bool) -> None:
    x = torch.randn(t, m if transposed else n, dtype=torch.float64)
    check(place, x, random_words(m, (n + 31) // 32), n, transposed)


def test_only_what_is_selected_counts(place: Place) -> None:
    mask = torch.zeros(2, 40, dtype=torch.bool)
    mask[0, 3] = mask[1, 39] = True
    words = reference.pack_bits(mask)
    x = torch.full((1, 40), float("nan"), dtype=torch.float64)
    x[0, 3], x[0, 39] = 5, float("inf")
    assert place(bits_linear, x, words, 40).tolist() == [[5, float("inf")]]
    by_row = torch.tensor([[2.0, float("nan")]], dtype=torch.float64)
    columns = place(bits_linear, by_row, words, 40, True)
    assert columns[0, 3] == 2 and columns[0, 39].isnan() and int((columns == 0).sum()) == 38


@some_views
@rows_and_columns
def test_strides(place: Place, view, transposed: bool) -> None:
    words = view(random_words(70, 70))
    n = 32 * words.shape[1] - 9
    check(place, torch.randn(len(words) if transposed else n, 3, dtype=torch.float64).t(), words, n, transposed)
