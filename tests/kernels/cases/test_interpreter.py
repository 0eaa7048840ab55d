"""The mended interpreter: bfloat16 is right, and planted errors in addresses are reported."""

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError

from tests.rounding import Exact, assert_right


@triton.jit
def operations_kernel(a, b, product, total, differences, compared, N: tl.constexpr):
    i = tl.arange(0, N)
    at = i[:, None] * N + i[None, :]
    left, right = tl.load(a + at), tl.load(b + at)
    tl.store(product + at, tl.dot(left, right))
    tl.store(total + i, tl.sum(left, 1))
    tl.store(differences + at, left - right)
    tl.store(compared + at, (left < right).to(tl.int32))


def test_bfloat16_is_computed_as_bfloat16() -> None:
    n = 16
    a, b = torch.randn(2, n, n).bfloat16()
    product, total = torch.empty(n, n), torch.empty(n).bfloat16()
    differences, compared = torch.empty_like(a), torch.empty(n, n, dtype=torch.int32)
    operations_kernel[(1,)](a, b, product, total, differences, compared, N=n)
    a64, b64 = a.double(), b.double()
    assert_right(product, Exact(a64 @ b64, a64.abs() @ b64.abs(), a64.square() @ b64.square(), n))
    assert_right(total, Exact(a64.sum(1), a64.abs().sum(1), a64.square().sum(1), n))
    assert torch.equal(differences, a - b)
    assert torch.equal(compared.bool(), a < b)


@triton.jit
def round_kernel(x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y + i, tl.load(x + i).to(tl.bfloat16))


def test_rounding_to_bfloat16_is_that_of_torch() -> None:
    x = torch.randint(-(2**31), 2**31, (1 << 16,)).to(torch.int32).view(torch.float32)
    ties = (torch.arange(64, dtype=torch.int32) * 0x8000 + 0x3F800000).view(torch.float32)
    x[:64], x[64:67] = ties, torch.tensor([float("inf"), -float("inf"), float("nan")])
    y = torch.empty(1 << 16, dtype=torch.bfloat16)
    round_kernel[(1,)](x, y, N=1 << 16)
    torch.testing.assert_close(y, x.bfloat16(), rtol=0, atol=0, equal_nan=True)


@triton.jit
def copy_kernel(x, y, n, EXCESS_LOAD: tl.constexpr, EXCESS_STORE: tl.constexpr, OFFSET: tl.constexpr):
    i = tl.arange(0, 16)
    values = tl.load(x + OFFSET + i, mask=i < n + EXCESS_LOAD, other=0)
    tl.store(y + i, values, mask=i < n + EXCESS_STORE)


@pytest.mark.parametrize(
    ("excess", "message"),
    [
        ((1, 0, 0), "load of element 5 of a tensor that ends at 5"),
        ((0, 1, 0), "store of element 5 of a tensor that ends at 5"),
        ((0, 0, -1), "load of element -1 of a tensor that ends at 5"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32], ids=str)
def test_a_step_outside_is_reported(excess: tuple[int, int, int], message: str, dtype: torch.dtype) -> None:
    # All in one piece of memory: the step outside ends in memory that the kernel may use through other pointers.
    memory = torch.zeros(20, dtype=dtype)
    x, y = memory[5:10], memory[10:15]
    copy_kernel[(1,)](x, y, 5, 0, 0, 0)
    with pytest.raises(InterpreterError, match=message):
        copy_kernel[(1,)](x, y, 5, *excess)
