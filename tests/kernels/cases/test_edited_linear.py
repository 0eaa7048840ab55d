"""edited_linear in Triton against the reference in float64."""

import pytest
import torch
from torch import Tensor

from cad_fast.ops import edited_linear
from tests.kernels.judge import assert_right
from tests.ops import exact
from tests.ops.test_edited_linear import random_case

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# (rows of each group, n, k): groups with no rows and no entries, of several blocks, several tiles of the weight.
SHAPES = [
    ([1], 1, 1),
    ([1, 2, 3, 1], 33, 31),
    ([0, 5, 0, 0, 1, 0], 65, 97),
    ([70, 3], 161, 131),
    ([1] * 20, 30, 70),
]


def case(device: torch.device, *arguments, **options) -> list[Tensor]:
    """As the tests of the native kernel have it; rows and offsets stay on the CPU."""
    x, weight, rows, offsets, indices, factors = random_case(*arguments, **options)
    return [x.to(device), weight.to(device), rows, offsets, indices.to(device), factors.to(device)]


def check(x: Tensor, weight: Tensor, *rest, **options) -> Tensor:
    actual = edited_linear(x, weight, *rest, backend="triton", **options)
    assert actual.dtype == x.dtype
    assert_right(actual, exact.edited_linear(x, weight, *rest, **options))
    return actual


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_against_reference(device, precision, shape: tuple, dtype: torch.dtype, transposed: bool) -> None:
    bias = [] if transposed else [torch.randn(shape[1]).to(device, dtype)]
    check(*case(device, *shape, dtype, transposed), *bias, transposed=transposed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_whole_weights_may_be_edited(device, dtype: torch.dtype, transposed: bool) -> None:
    check(*case(device, [3, 4, 20], 25, 77, dtype, transposed, share=1.0), transposed=transposed)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_what_is_removed_does_not_leak(device, dtype: torch.dtype, transposed: bool, bad: float) -> None:
    x, weight, rows, *_ = case(device, [1, 20], 50, 80, dtype, transposed)
    indices = torch.arange(3, 4000, 17, device=device)
    weight.flatten()[indices] = bad
    offsets = torch.tensor([0, len(indices), 2 * len(indices)])
    factors = torch.zeros(2 * len(indices), device=device)
    check(x, weight, rows, offsets, indices.repeat(2), factors, transposed=transposed)


def test_an_infinite_weight_with_a_factor_stays_infinite(device) -> None:
    x, weight = torch.ones(2, 4, device=device), torch.ones(3, 4, device=device)
    weight[1, 2] = float("inf")
    edit = torch.tensor([0, 1, 1]), torch.tensor([6], device=device), torch.tensor([-0.5], device=device)
    y = edited_linear(x, weight, torch.tensor([0, 1, 2]), *edit, backend="triton")
    assert y.tolist() == [[4, -float("inf"), 4], [4, float("inf"), 4]]


def test_strides(device) -> None:
    x, weight, *edit = case(device, [2, 3], 40, 66, torch.float32, False)
    bias = torch.randn(40, device=device)
    strided = [
        x.t().contiguous().t(),
        weight.t().contiguous().t(),
        *(t.repeat_interleave(2)[::2] for t in (*edit, bias)),
    ]
    assert not any(t.is_contiguous() for t in strided)
    expected = edited_linear(x, weight, *edit, bias, backend="triton")
    assert torch.equal(edited_linear(*strided, backend="triton"), expected)


@pytest.mark.parametrize("shape", [(0, 5, 7), (3, 0, 7), (3, 5, 0)], ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_empty(device, shape: tuple[int, ...], transposed: bool) -> None:
    size, n, k = shape
    arguments = case(device, [0, size, 0], n, k, torch.float32, transposed)
    y = edited_linear(*arguments, None, transposed, backend="triton")
    assert torch.equal(y, torch.zeros(size, k if transposed else n, device=device))


@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_rows_do_not_depend_on_their_company(device, transposed: bool) -> None:
    x, weight, rows, offsets, indices, factors = case(device, [70, 9, 1, 30], 90, 130, torch.float32, transposed)
    whole = edited_linear(x, weight, rows, offsets, indices, factors, None, transposed, backend="triton")
    for group in range(4):
        first, own = int(rows[group]), slice(int(offsets[group]), int(offsets[group + 1]))
        edit = torch.tensor([0, own.stop - own.start]), indices[own], factors[own]
        row = x[first : first + 1]
        alone = edited_linear(row, weight, torch.tensor([0, 1]), *edit, None, transposed, backend="triton")
        assert torch.equal(alone, whole[first : first + 1])


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_every_configuration_sums_in_the_same_order(device, dtype: torch.dtype, transposed: bool) -> None:
    """The largest group chooses the configuration. Sums that cancel are what rounding leaves: it shows the order."""
    sizes = [5, 60, 100, 150]
    x, weight, rows, offsets, indices, factors = case(device, sizes, 70, 70, dtype, transposed)
    x, weight = torch.cat([x, -x], 1), torch.cat([weight, weight], 0 if transposed else 1)
    if not transposed:
        indices = indices // 70 * 140 + indices % 70
    whole = edited_linear(x, weight, rows, offsets, indices, factors, None, transposed, backend="triton")
    for group in range(len(sizes)):
        edit = slice(int(offsets[group]), int(offsets[group + 1]))
        alone = edited_linear(
            x[rows[group] : rows[group + 1]],
            weight,
            torch.tensor([0, sizes[group]]),
            torch.tensor([0, edit.stop - edit.start]),
            indices[edit],
            factors[edit],
            None,
            transposed,
            backend="triton",
        )
        assert torch.equal(alone, whole[rows[group] : rows[group + 1]])


@pytest.mark.parametrize(
    ("indices", "message"),
    [([7, 40, 0, 1], r"indices\[1\] = 40 is out of range"), ([7, 39, 5, 1], r"indices\[3\] = 1 must be above")],
)
def test_wrong_indices_never_reach_the_kernel(device, indices: list[int], message: str) -> None:
    x, weight = torch.zeros(3, 8, device=device), torch.zeros(5, 8, device=device)
    given = torch.tensor([7, 39, 0, 1], device=device)
    rest = torch.tensor([0, 1, 3]), torch.tensor([0, 2, 4]), given, torch.zeros(4, device=device)
    edited_linear(x, weight, *rest, backend="triton")
    given.copy_(torch.tensor(indices))  # in place: what was checked before is checked again
    with pytest.raises(ValueError, match=message):
        edited_linear(x, weight, *rest, backend="triton")
