"""gated_linear in Triton against the reference in float64."""

import pytest
import torch
from torch import Tensor

from cad_fast.ops import gated_linear, reference
from tests.kernels.judge import assert_right
from tests.ops import exact

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# (variants, rows, n, k, gates): one row, few, several blocks; one tile of the weight and several; odd sizes and whole
# tiles; a gate per column and per block.
SHAPES = [
    (1, 1, 1, 1, 1),
    (3, 1, 65, 31, 31),
    (2, 17, 129, 102, 6),
    (2, 64, 64, 64, 64),
    (2, 131, 40, 70, 14),
    (1, 3, 700, 33, 33),
]


def random_case(shape: tuple[int, ...], dtype: torch.dtype, transposed: bool, device: torch.device) -> list[Tensor]:
    variants, rows, n, k, count = shape
    x = torch.randn(variants, rows, n if transposed else k)
    gates = torch.randn(variants, count) * (torch.rand(variants, count) < 0.6)
    return [t.to(device, dtype) for t in (x, torch.randn(n, k), gates, torch.randn(n))]


def check(x: Tensor, weight: Tensor, gates: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    actual = gated_linear(x, weight, gates, bias, transposed, backend="triton")
    assert actual.dtype == x.dtype
    assert_right(actual, exact.gated_linear(x, weight, gates, bias, transposed))
    return actual


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_against_reference(device, precision, shape: tuple[int, ...], dtype: torch.dtype, transposed: bool) -> None:
    x, weight, gates, bias = random_case(shape, dtype, transposed, device)
    check(x, weight, gates, None if transposed else bias, transposed)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_removed_does_not_leak(device, dtype: torch.dtype, bad: float) -> None:
    x, weight, gates, bias = random_case((3, 3, 40, 90, 30), dtype, False, device)
    gates[:, ::4] = 0
    removed = (gates == 0).repeat_interleave(3, 1)[:, None].expand(x.shape)
    expected = gated_linear(x, weight, gates, bias, backend="triton")
    assert expected.isfinite().all()
    assert torch.equal(gated_linear(x.masked_fill(removed, bad), weight, gates, bias, backend="triton"), expected)
    spoiled = torch.full((3, 3, 40), bad, device=device).to(dtype)
    back = gated_linear(spoiled, weight, gates, None, True, backend="triton")
    assert torch.equal(back[removed], torch.zeros_like(back[removed]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_gates_of_one_give_the_plain_product(device, dtype: torch.dtype, transposed: bool) -> None:
    """And those of a power of two the same but for the exponent: nothing is rounded twice."""
    x, weight, gates, _ = random_case((2, 9, 40, 66, 22), dtype, transposed, device)
    plain = check(x, weight, torch.ones_like(gates), None, transposed)
    doubled = gated_linear(x, weight, torch.full_like(gates, 2), None, transposed, backend="triton")
    assert torch.equal(doubled, 2 * plain)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_strides(device, dtype: torch.dtype, transposed: bool) -> None:
    x, weight, gates, bias = random_case((3, 6, 40, 66, 22), dtype, transposed, device)
    more = None if transposed else bias
    expected = gated_linear(x, weight, gates, more, transposed, backend="triton")
    strided = [
        x.transpose(0, 2).contiguous().transpose(0, 2),
        weight.t().contiguous().t(),
        gates.t().contiguous().t(),
        None if transposed else bias.repeat_interleave(2)[::2],
    ]
    assert not any(t.is_contiguous() for t in strided if t is not None)
    assert torch.equal(gated_linear(*strided, transposed, backend="triton"), expected)


@pytest.mark.parametrize("shape", [(0, 3, 5, 7, 7), (2, 0, 5, 7, 7), (2, 3, 0, 7, 1), (2, 3, 5, 0, 0)], ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_empty(device, shape: tuple[int, ...], transposed: bool) -> None:
    variants, rows, n, k, _ = shape
    x, weight, gates, _ = random_case(shape, torch.float32, transposed, device)
    y = gated_linear(x, weight, gates, transposed=transposed, backend="triton")
    assert torch.equal(y, torch.zeros(variants, rows, k if transposed else n, device=device))


@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_other_variants_do_not_matter(device, transposed: bool) -> None:
    x, weight, gates, _ = random_case((5, 20, 130, 90, 18), torch.float32, transposed, device)
    whole = gated_linear(x, weight, gates, transposed=transposed, backend="triton")
    part = gated_linear(x[2:4], weight, gates[2:4], transposed=transposed, backend="triton")
    assert torch.equal(part, whole[2:4])


@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
@pytest.mark.parametrize("of_gates", [False, True], ids=["fixed", "differentiable"])
def test_gradients(device, transposed: bool, of_gates: bool) -> None:
    x, weight, gates, bias = random_case((2, 3, 21, 34, 17), torch.float32, transposed, device)

    def gradients(function, dtype: torch.dtype, **options) -> tuple[Tensor, ...]:
        own = [t.to(dtype).requires_grad_() for t in (x, weight, gates, bias)]
        taken = own if of_gates else own[:2]
        given = own[2] if of_gates else own[2].detach()
        y = function(own[0], own[1], given, None if transposed else own[3], transposed, **options)
        return torch.autograd.grad(y.pow(3).sum(), taken[:3] if transposed else taken)

    expected = gradients(reference.gated_linear, torch.float64)
    for mine, right in zip(gradients(gated_linear, torch.float32, backend="triton"), expected, strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=1e-4, atol=1e-4 * float(right.abs().max()))
