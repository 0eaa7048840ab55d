"""gated_linear, wherever it runs, against the reference in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cad_fast.ops import gated_linear, reference
from tests.ops import exact
from tests.ops.cases.test_masked_linear import transposing
from tests.ops.gradients import assert_gradients_right
from tests.ops.places import Place, over, sizes

# (variants, rows, n, k, gates): a gate per column and per block of them; tiles that hold rows of several variants, and
# variants that hold several tiles; panels of 32 and blocks of 384 steps with and without a rest.
NATIVE = [
    (1, 1, 1, 1, 1),
    (5, 1, 33, 31, 31),
    (2, 2, 31, 36, 12),
    (3, 3, 67, 385, 77),
    (2, 17, 129, 102, 102),
    (2, 65, 161, 132, 4),
    (1, 40, 40, 1555, 1555),
]

# One row, few, several blocks; one tile of the weight and several; odd sizes and whole tiles.
INTERPRETED = [
    (1, 1, 1, 1, 1),
    (3, 1, 65, 31, 31),
    (2, 17, 129, 102, 6),
    (2, 64, 64, 64, 64),
    (2, 131, 40, 70, 14),
    (1, 3, 700, 33, 33),
]


def random_case(
    shape: tuple[int, ...], dtype: torch.dtype, transposed: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """X, weight, gates, of which some are 0, and bias."""
    variants, rows, n, k, count = shape
    x = torch.randn(variants, rows, n if transposed else k).to(dtype)
    gates = torch.randn(variants, count) * (torch.rand(variants, count) < 0.7)
    bias = None if transposed else torch.randn(n).to(dtype)
    return x, torch.randn(n, k).to(dtype), gates.to(dtype), bias


def by_torch(place: Place, dtype: torch.dtype, transposed: bool) -> bool:
    """Whether torch multiplies, which has other kernels for other strides and other numbers of rows."""
    return place.backend == "native" and (transposed or dtype == torch.bfloat16)


@over(every_way=True, also=("vendor",), shape=sizes(INTERPRETED, NATIVE, gpu=INTERPRETED))
@transposing
def test_against_reference(place: Place, shape: tuple[int, ...], dtype: torch.dtype, transposed: bool) -> None:
    x, weight, gates, bias = random_case(shape, dtype, transposed)
    place.check(gated_linear, x, weight, gates, bias, transposed)
    if not transposed and place.kind != "interpreted":  # which takes its time
        place.check(gated_linear, x, weight, gates, None, transposed)


@over(also=("vendor",), rows=sizes([3], [1, 3, 20]))
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_removed_does_not_leak(place: Place, rows: int, dtype: torch.dtype, bad: float) -> None:
    x, weight, gates, bias = random_case((3, rows, 40, 90, 30), dtype, False)
    gates[:, ::4] = 0
    removed = (gates == 0).repeat_interleave(3, 1)[:, None].expand(x.shape)
    expected = place(gated_linear, x, weight, gates, bias)
    assert expected.isfinite().all()
    assert torch.equal(place(gated_linear, x.masked_fill(removed, bad), weight, gates, bias), expected)
    back = place(gated_linear, torch.full((3, rows, 40), bad).to(dtype), weight, gates, None, True)
    assert torch.equal(back[removed], torch.zeros_like(back[removed]))


@transposing
def test_gates_of_one_give_the_plain_product(place: Place, dtype: torch.dtype, transposed: bool) -> None:
    """And those of a power of two the same but for the exponent: nothing is rounded twice."""
    x, weight, gates, bias = random_case((2, 9, 40, 90, 45), dtype, transposed)
    ones, none = torch.ones_like(gates), torch.zeros(2, 40, 3, dtype=torch.int32)
    right = exact.masked_linear(x, weight, none, bias, None, transposed)  # which knows of no rounding of the input
    place.assert_right(place(gated_linear, x, weight, ones, bias, transposed), right)
    plain = place(gated_linear, x, weight, ones, None, transposed)
    assert torch.equal(place(gated_linear, x, weight, 2 * ones, None, transposed), 2 * plain)


@transposing
def test_strides(place: Place, dtype: torch.dtype, transposed: bool) -> None:
    x, weight, gates, bias = random_case((3, 6, 40, 66, 22), dtype, transposed)
    expected = place(gated_linear, x, weight, gates, bias, transposed)
    strided = [
        x.transpose(0, 2).contiguous().transpose(0, 2),
        weight.t().contiguous().t(),
        gates.t().contiguous().t(),
        None if transposed else bias.repeat_interleave(2)[::2],
    ]
    assert not any(t.is_contiguous() for t in strided if t is not None)
    actual = place(gated_linear, *strided, transposed)
    if by_torch(place, dtype, transposed):
        place.assert_right(actual, exact.gated_linear(x, weight, gates, bias, transposed))
    else:
        assert torch.equal(actual, expected)


@over(also=("reference", "vendor"))
@pytest.mark.parametrize("shape", [(0, 3, 5, 7, 7), (2, 0, 5, 7, 7), (2, 3, 0, 7, 1), (2, 3, 5, 0, 0)], ids=str)
@transposing
def test_empty(place: Place, shape: tuple[int, ...], dtype: torch.dtype, transposed: bool) -> None:
    variants, rows, n, k, _ = shape
    x, weight, gates, _ = random_case(shape, dtype, transposed)
    leaves = [t.requires_grad_() for t in (x, weight, gates)]
    y = place(gated_linear, *leaves, None, transposed)
    assert torch.equal(y, torch.zeros(variants, rows, k if transposed else n, dtype=dtype))
    grads = torch.autograd.grad(y.sum(), leaves)
    assert all(torch.equal(g, torch.zeros_like(t)) for g, t in zip(grads, leaves, strict=True))


@over(rows=sizes([20], [1, 5, 90]), size=sizes([(70, 45, 9)], [(300, 450, 90)], halves=[]))
@transposing
def test_rows_do_not_depend_on_their_company(
    place: Place, rows: int, size: tuple[int, ...], dtype: torch.dtype, transposed: bool
) -> None:
    x, weight, gates, bias = random_case((7, rows, *size), dtype, transposed)
    whole = place(gated_linear, x, weight, gates, bias, transposed)
    if by_torch(place, dtype, transposed):  # not on what they hold
        x[:4], gates[:4] = torch.randn_like(x[:4]), 1
        part = place(gated_linear, x, weight, gates, bias, transposed)[4:7]
    else:
        part = place(gated_linear, x[4:7], weight, gates[4:7], bias, transposed)
    assert torch.equal(part, whole[4:7])


@over(also=("reference",))
@transposing
def test_gradients(place: Place, transposed: bool) -> None:
    """At gates of which some are 0, with and without a bias."""
    x, weight, gates, bias = random_case((3, 4, 21, 34, 17), torch.float32, transposed)
    assert (gates == 0).any()
    for inputs in ([x, weight, gates],) if transposed else ([x, weight, gates, bias], [x, weight, gates]):
        assert_gradients_right(
            lambda x, weight, gates, bias=None: place(gated_linear, x, weight, gates, bias, transposed),
            lambda x, weight, gates, bias=None: reference.gated_linear(x, weight, gates, bias, transposed),
            inputs,
        )


@over(also=("reference",))
@pytest.mark.parametrize("needed", [(0,), (2,), (0, 1), (0, 2)], ids=str)
@transposing
def test_gradients_of_some(place: Place, needed: tuple[int, ...], transposed: bool) -> None:
    case = random_case((3, 4, 21, 34, 17), torch.float32, transposed)[:3]

    def of_some(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*some: Tensor) -> Tensor:
            given = dict(enumerate(t.to(some[0].dtype) for t in case)) | dict(zip(needed, some, strict=True))
            return function(*(given[i] for i in range(3)), None, transposed)

        return call

    own = of_some(lambda *given: place(gated_linear, *given))
    assert_gradients_right(own, of_some(reference.gated_linear), [case[i] for i in needed])
