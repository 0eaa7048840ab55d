"""bits_linear: products with a matrix of zeros and ones that is held as packed bits."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from cad_fast.ops import backends, checks, reference
from cad_fast.ops.define import define


def bits_linear(x: Tensor, words: Tensor, n: int, transposed: bool = False, *, backend: str | None = None) -> Tensor:
    """Multiply: x B^T, or x B if transposed, for B [m, n] whose row r has ones where bits of `words[r]` are set.

    What is not selected is not read as a number: NaN and infinity count only where their bit is set.

    Args:
        x: [t, n], or [t, m] if transposed, float64, any strides.
        words: [m, ceil(n / 32)], int32, any strides; bits behind element n - 1 are ignored.
        n: how many columns B has.
        transposed: whether rows or columns are added up.
        backend: "auto", "native" or "reference"; None means the one in force (`use_backend`).

    Returns:
        [t, m], or [t, n] if transposed, float64. The result does not depend on the number of threads.

    Raises:
        TypeError: a tensor is none or has another dtype, or `n` is no int.
        ValueError: shapes or devices do not fit.
        RuntimeError: the backend asked for cannot run.
    """
    return _op(x, words, n, transposed, backend)


def _empty(x: Tensor, words: Tensor, n: int, transposed: bool) -> Tensor:
    return x.new_empty((x.shape[0], n if transposed else words.shape[0]))


@define("bits_linear", _empty)
def _op(x: Tensor, words: Tensor, n: int, transposed: bool) -> None:
    checks.tensor("x", x, (torch.float64,))
    checks.tensor("words", words, (torch.int32,))
    checks.size("n", n)
    if words.dim() != 2 or words.shape[1] != checks.bits.words_for(n):
        raise ValueError(f"words must be [m, {checks.bits.words_for(n)}] for n = {n}, got {checks.shape(words)}")
    columns = words.shape[0] if transposed else n
    if x.dim() != 2 or x.shape[1] != columns:
        raise ValueError(f"x must be [t, {columns}], got {checks.shape(x)}")
    checks.same_device("words", words, "x", x)


def _native_bits_linear(x: Tensor, words: Tensor, n: int, transposed: bool) -> Tensor:
    words = words.contiguous()
    m, w = words.shape
    t = x.shape[0]
    columns = checks.bits.WORD_BITS * w
    # Whole words of columns, so that the kernel needs no case for a last part of one.
    x = x.contiguous() if transposed else pad(x, (0, columns - n)).contiguous()
    y = torch.empty((t, columns if transposed else m), dtype=torch.float64)
    backends.native.module().bits_linear(words.data_ptr(), m, w, x.data_ptr(), y.data_ptr(), t, transposed)
    return y[:, :n].contiguous() if transposed else y


_op.implement(
    native=_native_bits_linear,
    reference=reference.bits_linear,
)
