"""masked_linear in Triton against the reference in float64."""

import pytest
import torch
from torch import Tensor

from cad_fast.ops import masked_linear, pack_bits, reference
from tests.kernels.judge import assert_right
from tests.ops import exact

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# (variants, rows, n, k): one row, few, several blocks; one tile of the weight and several; odd sizes and whole tiles.
SHAPES = [
    (1, 1, 1, 1),
    (3, 1, 65, 31),
    (2, 17, 129, 101),
    (2, 64, 64, 64),
    (2, 131, 40, 70),
    (1, 3, 700, 33),
]


def random_case(shape: tuple[int, ...], dtype: torch.dtype, transposed: bool, device: torch.device) -> list[Tensor]:
    variants, rows, n, k = shape
    x = torch.randn(variants, rows, n if transposed else k)
    words = pack_bits(torch.rand(variants, n, k) < 0.4)
    words[..., -1] |= -1 << k % 32 if k % 32 else 0  # bits behind the last element mean nothing
    tensors = [x.to(dtype), torch.randn(n, k).to(dtype), words, torch.randn(n).to(dtype)]
    return [tensor.to(device) for tensor in tensors]


def check(x: Tensor, weight: Tensor, words: Tensor, *rest, **options) -> Tensor:
    actual = masked_linear(x, weight, words, *rest, backend="triton", **options)
    assert actual.dtype == x.dtype
    assert_right(actual, exact.masked_linear(x, weight, words, *rest, **options))
    return actual


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_against_reference(device, precision, shape: tuple[int, ...], dtype: torch.dtype, transposed: bool) -> None:
    x, weight, words, bias = random_case(shape, dtype, transposed, device)
    check(x, weight, words, None if transposed else bias, transposed=transposed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_factors(device, precision, dtype: torch.dtype, transposed: bool) -> None:
    x, weight, words, _ = random_case((5, 4, 67, 133), dtype, transposed, device)
    factors = torch.tensor([0.0, 1.0, -1.5, 0.3, 1e-30], device=device)
    check(x, weight, words, None, factors, transposed=transposed)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
@pytest.mark.parametrize("factors", [None, [0.0, 0.0]], ids=["removed", "zero"])
def test_what_is_removed_does_not_leak(device, dtype: torch.dtype, transposed: bool, factors, bad: float) -> None:
    x, weight, _, _ = random_case((2, 3, 50, 80), dtype, transposed, device)
    mask = torch.rand(2, 50, 80, device=device) < 0.5
    mask[:, ::7, ::3] = True
    weight[::7, ::3] = bad
    given = None if factors is None else torch.tensor(factors, device=device)
    check(x, weight, pack_bits(mask), None, given, transposed=transposed)


@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_infinite_factors_reach_ablated_weights_alone(device, transposed: bool) -> None:
    x, weight, words, _ = random_case((2, 2, 33, 45), torch.float32, transposed, device)
    words[0] = 0
    words[..., -1] |= -1 << 45 % 32
    y = masked_linear(
        x, weight, words, None, torch.tensor([float("inf"), 1.0], device=device), transposed, backend="triton"
    )
    assert y.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_strides(device, dtype: torch.dtype, transposed: bool) -> None:
    x, weight, words, bias = random_case((3, 6, 40, 66), dtype, transposed, device)
    more = (None,) if transposed else (bias,)
    expected = masked_linear(x, weight, words, *more, transposed=transposed, backend="triton")
    strided = [
        x.transpose(0, 2).contiguous().transpose(0, 2),
        weight.t().contiguous().t(),
        words.repeat_interleave(2, 1)[:, ::2],
        *(t if t is None else t.repeat_interleave(2)[::2] for t in more),
    ]
    assert not any(t.is_contiguous() for t in strided if t is not None)
    assert torch.equal(masked_linear(*strided, transposed=transposed, backend="triton"), expected)


@pytest.mark.parametrize("shape", [(0, 3, 5, 7), (2, 0, 5, 7), (2, 3, 0, 7), (2, 3, 5, 0)], ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_empty(device, shape: tuple[int, ...], transposed: bool) -> None:
    variants, rows, n, k = shape
    x = torch.randn(variants, rows, n if transposed else k, device=device)
    words = torch.zeros(variants, n, (k + 31) // 32, dtype=torch.int32, device=device)
    y = masked_linear(x, torch.randn(n, k, device=device), words, transposed=transposed, backend="triton")
    assert torch.equal(y, torch.zeros(variants, rows, k if transposed else n, device=device))


@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_other_variants_do_not_matter(device, transposed: bool) -> None:
    x, weight, words, _ = random_case((5, 20, 130, 90), torch.float32, transposed, device)
    whole = masked_linear(x, weight, words, transposed=transposed, backend="triton")
    part = masked_linear(x[2:4], weight, words[2:4], transposed=transposed, backend="triton")
    assert torch.equal(part, whole[2:4])


def test_gradients(device) -> None:
    x, weight, words, bias = random_case((2, 3, 21, 34), torch.float32, False, device)
    factors = torch.tensor([0.0, -0.5], device=device)

    def gradients(function, dtype: torch.dtype, **options) -> tuple[Tensor, ...]:
        own = [t.to(dtype).requires_grad_() for t in (x, weight, bias)]
        y = function(own[0], own[1], words, own[2], factors, **options)
        return torch.autograd.grad(y.pow(3).sum(), own)

    expected = gradients(reference.masked_linear, torch.float64)
    for mine, right in zip(gradients(masked_linear, torch.float32, backend="triton"), expected, strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=1e-4, atol=1e-4 * float(right.abs().max()))
