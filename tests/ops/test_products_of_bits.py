"""gram_bits and bits_linear: every instruction set against the reference, which is against the definition."""

import pytest
import torch

from cad_fast.ops import bits_linear, gram_bits, reference, unpack_bits

ROWS = [0, 1, 3, 4, 63, 64, 65, 131]
COLUMNS = [0, 1, 31, 32, 33, 511, 513, 16384, 16384 * 2 + 45]


def random_words(m: int, n: int) -> torch.Tensor:
    """Bits behind the last column are set at random too."""
    return torch.randint(-(2**31), 2**31, (m, (n + 31) // 32), dtype=torch.int64).to(torch.int32)


def test_reference_is_the_definition() -> None:
    words = random_words(6, 75)
    bits = unpack_bits(words, 96).double()
    assert torch.equal(reference.gram_bits(words).double(), bits @ bits.T)
    for transposed, columns in ((False, 75), (True, 6)):
        x = torch.randn(4, columns, dtype=torch.float64)
        matrix = bits[:, :75] if transposed else bits[:, :75].T
        torch.testing.assert_close(reference.bits_linear(x, words, 75, transposed), x @ matrix)


@pytest.mark.parametrize("n", COLUMNS)
@pytest.mark.parametrize("m", ROWS)
def test_gram_against_exact_products(capability: str, m: int, n: int) -> None:
    words = random_words(m, n)
    bits = unpack_bits(words, 32 * words.shape[1]).float()  # sums below 2**24 are exact
    found = gram_bits(words, backend="native")
    assert found.dtype == torch.int32 and torch.equal(found, (bits @ bits.T).to(torch.int32))


def test_gram_of_full_rows(capability: str) -> None:
    words = torch.full((5, 3000), -1, dtype=torch.int32)
    assert (gram_bits(words, backend="native") == 96000).all()


@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("t", [1, 4, 7])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 33), (300, 70), (65, 1500), (258, 545), (0, 40), (5, 0)])
def test_products_against_reference(capability: str, m: int, n: int, t: int, transposed: bool) -> None:
    words = random_words(m, n)
    x = torch.randn(t, m if transposed else n, dtype=torch.float64)
    found = bits_linear(x, words, n, transposed, backend="native")
    torch.testing.assert_close(found, reference.bits_linear(x, words, n, transposed), rtol=1e-12, atol=1e-12)


def test_only_what_is_selected_counts(capability: str) -> None:
    mask = torch.zeros(2, 40, dtype=torch.bool)
    mask[0, 3] = mask[1, 39] = True
    words = reference.pack_bits(mask)
    x = torch.full((1, 40), float("nan"), dtype=torch.float64)
    x[0, 3], x[0, 39] = 5, float("inf")
    assert bits_linear(x, words, 40, backend="native").tolist() == [[5, float("inf")]]
    by_row = torch.tensor([[2.0, float("nan")]], dtype=torch.float64)
    columns = bits_linear(by_row, words, 40, True, backend="native")
    assert columns[0, 3] == 2 and columns[0, 39].isnan() and int((columns == 0).sum()) == 38


@pytest.mark.parametrize("view", [lambda w: w.t(), lambda w: w[::2, 1:], lambda w: w.flip(1)], ids=["t", "cut", "flip"])
def test_strides(capability: str, view) -> None:
    words = view(random_words(70, 70 * 32))
    n = 32 * words.shape[1] - 9
    assert torch.equal(gram_bits(words, backend="native"), reference.gram_bits(words))
    for transposed, columns in ((False, n), (True, len(words))):
        x = torch.randn(columns, 3, dtype=torch.float64).t()
        found = bits_linear(x, words, n, transposed, backend="native")
        torch.testing.assert_close(found, reference.bits_linear(x, words, n, transposed), rtol=1e-12, atol=1e-12)


def test_thread_settings_give_equal_results(capability: str) -> None:
    words = random_words(333, 5000)
    x, y = torch.randn(5, 5000, dtype=torch.float64), torch.randn(5, 333, dtype=torch.float64)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append((gram_bits(words), bits_linear(x, words, 5000), bits_linear(y, words, 5000, True)))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(one, first) for one, first in zip(result, results[0], strict=True))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gram_bits(torch.zeros(2, 2)), TypeError, "words must have dtype torch.int32"),
        (lambda: gram_bits(random_words(2, 40)[0]), ValueError, r"words must be \[m, w\], got \[2\]"),
        (lambda: bits_linear(torch.ones(1, 40), random_words(2, 40), 40), TypeError, "x must have dtype torch.float64"),
        (lambda: bits_linear(torch.ones(1, 9).double(), random_words(2, 40), 40), ValueError, r"x must be \[t, 40\]"),
        (lambda: bits_linear(torch.ones(1, 9).double(), random_words(2, 40), 40, True), ValueError, r"be \[t, 2\]"),
        (lambda: bits_linear(torch.ones(1, 65).double(), random_words(2, 40), 65), ValueError, r"be \[m, 3\] for n"),
    ],
)
def test_errors_name_the_argument(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
