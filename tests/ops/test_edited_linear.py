"""edited_linear: every instruction set against the reference in float64."""

import pytest
import torch
from torch import Tensor

from cad_fast.ops import edited_linear, reference
from tests.ops import exact
from tests.ops.linear_cases import BACKENDS, with_threads
from tests.rounding import assert_right

DTYPES = [torch.float32, torch.bfloat16]

# (rows of each group, n, k)
SHAPES = [
    ([1], 1, 1),
    ([1, 2, 3, 1], 33, 31),
    ([0, 5, 0, 0, 1, 0], 65, 97),
    ([14, 15, 29, 2], 31, 385),
    ([70, 3], 161, 131),
    ([2, 90], 40, 1555),
    ([1] * 20, 130, 70),
]


def random_edits(groups: int, n: int, k: int, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Offsets, indices and factors; every third group has no entries."""
    chosen = [(torch.rand(n * k) < (share if g % 3 != 1 else 0)).nonzero().flatten() for g in range(groups)]
    offsets = torch.tensor([0, *map(len, chosen)]).cumsum(0)
    indices = torch.cat(chosen)
    return offsets, indices, torch.tensor([0.0, -1.0, 0.5, 3.0])[torch.randint(4, indices.shape)]


def random_case(
    sizes: list[int], n: int, k: int, dtype: torch.dtype, transposed: bool, share: float = 0.05
) -> tuple[Tensor, ...]:
    rows = torch.tensor([0, *sizes]).cumsum(0)
    x = torch.randn(int(rows[-1]), n if transposed else k).to(dtype)
    return x, torch.randn(n, k).to(dtype), rows, *random_edits(len(sizes), n, k, share)


def check(x: Tensor, weight: Tensor, *rest, **options) -> Tensor:
    actual = edited_linear(x, weight, *rest, backend="native", **options)
    assert actual.dtype == x.dtype
    assert_right(actual, exact.edited_linear(x, weight, *rest, **options))
    return actual


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_against_reference(capability: str, shape: tuple, dtype: torch.dtype, transposed: bool) -> None:
    case = random_case(*shape, dtype, transposed)
    check(*case, transposed=transposed)
    if not transposed:
        check(*case, torch.randn(shape[1]).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
@pytest.mark.parametrize("size", [(45, 470), (420, 900)], ids=["one block", "several"])
def test_whole_weights_may_be_edited(
    capability: str, size: tuple[int, int], dtype: torch.dtype, transposed: bool
) -> None:
    check(*random_case([3, 4, 20], *size, dtype, transposed, share=1.0), transposed=transposed)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_what_is_removed_does_not_leak(capability: str, dtype: torch.dtype, transposed: bool, bad: float) -> None:
    x, weight, rows, *_ = random_case([1, 20], 50, 80, dtype, transposed)
    indices = torch.arange(3, 4000, 17)
    weight.flatten()[indices] = bad
    offsets = torch.tensor([0, len(indices), 2 * len(indices)])
    check(x, weight, rows, offsets, indices.repeat(2), torch.zeros(2 * len(indices)), transposed=transposed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides(capability: str, dtype: torch.dtype) -> None:
    x, weight, *edit = random_case([2, 3], 40, 66, dtype, False)
    strided = [
        x.t().contiguous().t(),
        weight.t().contiguous().t(),
        *(t.repeat_interleave(2)[::2] for t in edit),
        torch.randn(40, 2).to(dtype)[:, 0],
    ]
    assert not any(t.is_contiguous() for t in strided)
    expected = edited_linear(x, weight, *edit, strided[-1].contiguous(), backend="native")
    assert torch.equal(edited_linear(*strided, backend="native"), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 5, 7), (3, 0, 7), (3, 5, 0)], ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_empty(backend: str, shape: tuple[int, ...], transposed: bool) -> None:
    size, n, k = shape
    y = edited_linear(*random_case([0, size, 0], n, k, torch.float32, transposed), None, transposed, backend=backend)
    assert torch.equal(y, torch.zeros(size, k if transposed else n))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_rows_do_not_depend_on_their_company(capability: str, dtype: torch.dtype, transposed: bool) -> None:
    x, weight, rows, offsets, indices, factors = random_case([40, 9, 1, 80, 30], 300, 450, dtype, transposed)

    def call() -> Tensor:
        return edited_linear(x, weight, rows, offsets, indices, factors, transposed=transposed, backend="native")

    whole, *others = with_threads((1, 2, 3), call)
    assert all(torch.equal(other, whole) for other in others)
    for group in range(5):
        first, own = int(rows[group]), slice(int(offsets[group]), int(offsets[group + 1]))
        edit = torch.tensor([0, own.stop - own.start]), indices[own], factors[own]
        one = torch.tensor([0, 1])
        alone = edited_linear(x[first : first + 1], weight, one, *edit, transposed=transposed, backend="native")
        assert torch.equal(alone, whole[first : first + 1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_gradients(backend: str, transposed: bool) -> None:
    x, weight, *edit = random_case([3, 0, 4], 21, 34, torch.float32, transposed)
    inputs = [x, weight] if transposed else [x, weight, torch.randn(21)]

    def loss(function, dtype: torch.dtype, **options) -> tuple[Tensor, ...]:
        x, weight, *bias = own = [t.to(dtype).requires_grad_() for t in inputs]
        y = function(x, weight, *edit, *(bias or [None]), transposed, **options)
        first = torch.autograd.grad(y.pow(3).sum(), own, create_graph=True)
        return *first, *torch.autograd.grad(first[0].pow(2).sum(), own[:2])

    actual = loss(edited_linear, torch.float32, backend=backend)
    for mine, right in zip(actual, loss(reference.edited_linear, torch.float64), strict=True):
        limit = 1e-4 * float(right.detach().abs().max())
        torch.testing.assert_close(mine.double(), right, rtol=1e-4, atol=limit)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles(backend: str) -> None:
    x, weight, *edit = random_case([3, 2], 40, 50, torch.float32, False)
    x.requires_grad_()

    def function(x: Tensor) -> Tensor:
        return edited_linear(x * 2, weight, *edit, backend=backend).relu()

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), function(x))
    (actual,) = torch.autograd.grad(compiled(x).sum(), x)
    (expected,) = torch.autograd.grad(function(x).sum(), x)
    torch.testing.assert_close(actual, expected)


def integers(*values: int) -> Tensor:
    return torch.tensor(values)


GOOD = {
    "x": torch.zeros(3, 8),
    "weight": torch.zeros(5, 8),
    "rows": integers(0, 1, 3),
    "offsets": integers(0, 2, 4),
    "indices": integers(7, 39, 0, 1),
    "factors": torch.zeros(4),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"rows": [0, 1, 3]}, TypeError, "rows must be a tensor, got list"),
        ({"indices": GOOD["indices"].int()}, TypeError, "indices must have dtype torch.int64, got torch.int32"),
        ({"factors": GOOD["factors"].double()}, TypeError, "factors must have dtype torch.float32"),
        ({"x": torch.zeros(3, 7)}, ValueError, r"x must be \[rows, 8\] for a weight \[5, 8\], got \[3, 7\]"),
        ({"rows": integers(0)}, ValueError, r"rows must be \[groups \+ 1\] with at least one group, got \[1\]"),
        ({"rows": integers(0, 1, 2)}, ValueError, "rows must ascend from 0 to 3"),
        ({"rows": integers(1, 1, 3)}, ValueError, "rows must ascend from 0 to 3"),
        ({"rows": integers(0, 4, 3)}, ValueError, "rows must ascend from 0 to 3"),
        ({"offsets": integers(0, 4)}, ValueError, r"offsets must be \[3\], got \[2\]"),
        ({"offsets": integers(0, 5, 4)}, ValueError, "offsets must ascend from 0 to 4"),
        ({"offsets": integers(0, 2, 3)}, ValueError, "offsets must ascend from 0 to 4"),
        ({"factors": torch.zeros(3)}, ValueError, r"factors must be \[4\], got \[3\]"),
        ({"indices": integers(7, 40, 0, 1)}, ValueError, r"indices\[1\] = 40 is out of range .* 40 elements"),
        ({"indices": integers(7, 39, -1, 1)}, ValueError, r"indices\[2\] = -1 is out of range"),
        ({"indices": integers(7, 7, 0, 1)}, ValueError, r"indices\[1\] = 7 must be above .* in its group, 7"),
        ({"indices": integers(7, 39, 5, 1)}, ValueError, r"indices\[3\] = 1 must be above .* in its group, 5"),
        ({"bias": torch.zeros(4)}, ValueError, r"bias must be \[5\], got \[4\]"),
        ({"rows": GOOD["rows"].to("meta")}, ValueError, "rows must be on cpu, got meta"),
    ],
)
def test_errors_name_the_argument(backend: str, wrong: dict, error: type[Exception], message: str) -> None:
    edited_linear(**GOOD, backend=backend)
    with pytest.raises(error, match=message):
        edited_linear(**GOOD | wrong, backend=backend)
