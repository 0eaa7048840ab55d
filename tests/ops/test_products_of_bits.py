"""gram_bits and bits_linear: the reference against the definition, threads, and errors."""

import pytest
import torch

from cad_fast.ops import bits_linear, gram_bits, reference, unpack_bits
from tests.ops.bits import random_words
from tests.ops.calls import with_threads


def test_reference_is_the_definition() -> None:
    words = random_words(6, 3)
    bits = unpack_bits(words, 96).double()
    assert torch.equal(reference.gram_bits(words).double(), bits @ bits.T)
    for transposed, columns in ((False, 75), (True, 6)):
        x = torch.randn(4, columns, dtype=torch.float64)
        matrix = bits[:, :75] if transposed else bits[:, :75].T
        torch.testing.assert_close(reference.bits_linear(x, words, 75, transposed), x @ matrix)


def test_thread_settings_give_equal_results(capability: str) -> None:
    words = random_words(333, 157)
    x, y = torch.randn(5, 5000, dtype=torch.float64), torch.randn(5, 333, dtype=torch.float64)
    first, *others = with_threads(
        (1, 2, 3), lambda: (gram_bits(words), bits_linear(x, words, 5000), bits_linear(y, words, 5000, True))
    )
    for other in others:
        assert all(torch.equal(one, same) for one, same in zip(other, first, strict=True))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gram_bits(torch.zeros(2, 2)), TypeError, "words must have dtype torch.int32"),
        (lambda: gram_bits(random_words(2, 2)[0]), ValueError, r"words must be \[m, w\], got \[2\]"),
        (lambda: bits_linear(torch.ones(1, 40), random_words(2, 2), 40), TypeError, "x must have dtype torch.float64"),
        (lambda: bits_linear(torch.ones(1, 9).double(), random_words(2, 2), 40), ValueError, r"x must be \[t, 40\]"),
        (lambda: bits_linear(torch.ones(1, 9).double(), random_words(2, 2), 40, True), ValueError, r"be \[t, 2\]"),
        (lambda: bits_linear(torch.ones(1, 65).double(), random_words(2, 2), 65), ValueError, r"be \[m, 3\] for n"),
    ],
)
def test_errors_name_the_argument(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
