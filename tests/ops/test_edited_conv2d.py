"""edited_conv2d against the reference in float64, for every instruction set."""

import pytest
import torch
from torch.nn.functional import conv2d

from cad_fast.ops import edited_conv2d, reference
from tests.ops import exact
from tests.rounding import assert_right

GEOMETRIES = {
    "plain": [[1, 1], [0, 0], [1, 1], 1],
    "same": [[1, 1], [1, 1], [1, 1], 1],
    "strided": [[2, 1], [0, 2], [1, 1], 1],
    "dilated": [[1, 1], [2, 2], [2, 1], 1],
    "grouped": [[1, 1], [1, 1], [1, 1], 2],
}
SIZES = [(9, 2, 5, 5, 2, 3, 3), (11, 6, 4, 4, 34, 3, 3), (8, 66, 7, 5, 50, 1, 1), (7, 4, 13, 17, 22, 3, 1)]
DTYPES = [torch.float32, torch.bfloat16]


def inputs(size: tuple[int, ...], dtype: torch.dtype, groups: int = 1) -> list:
    """X, weight, rows, offsets, indices, factors and bias: groups without rows, without an edit, and with both."""
    images, channels, height, width, filters, *kernel = size
    x = torch.randn(images, channels, height, width).to(dtype)
    weight = torch.randn(filters, channels // groups, *kernel).to(dtype)
    counts = (weight.numel() // 3, 0, 0, 1, weight.numel())
    edits = [torch.randperm(weight.numel())[:n].sort().values for n in counts]
    offsets = torch.tensor([0, *counts]).cumsum(0)
    factors = torch.randn(int(offsets[-1]))
    factors[::2] = 0.0
    rows = torch.tensor([0, 2, 3, 4, 4, images])
    return [x, weight, rows, offsets, torch.cat(edits), factors, torch.randn(filters).to(dtype)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_against_reference(capability: str, size: tuple[int, ...], geometry: str, dtype: torch.dtype) -> None:
    how = GEOMETRIES[geometry]
    arguments = (*inputs(size, dtype, how[3]), *how)
    before = arguments[1].clone()
    y = edited_conv2d(*arguments, backend="native")
    assert y.dtype == dtype
    assert_right(y, exact.edited_conv2d(*arguments))
    assert torch.equal(arguments[1], before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_transposed(capability: str, geometry: str, dtype: torch.dtype) -> None:
    how = GEOMETRIES[geometry]
    x, *edit, _ = inputs((7, 6, 7, 9, 10, 3, 3), dtype, how[3])
    grad = torch.randn_like(conv2d(x, edit[0], None, *how))
    arguments = (grad, *edit, None, *how, [7, 9])
    y = edited_conv2d(*arguments, backend="native")
    assert y.shape == x.shape
    assert_right(y, exact.edited_conv2d(*arguments))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_removed_elements_leave_nothing_behind(capability: str, dtype: torch.dtype) -> None:
    x, weight, *_ = inputs(SIZES[1], dtype)
    removed = torch.arange(0, weight.numel(), 3)
    spoiled = weight.clone().view(-1)
    spoiled[removed] = torch.nan
    spoiled[removed[::2]] = torch.inf
    edit = (torch.tensor([0, len(x)]), torch.tensor([0, len(removed)]), removed, torch.zeros(len(removed)))
    y = edited_conv2d(x, spoiled.view(weight.shape), *edit, padding=1, backend="native")
    assert torch.equal(y, edited_conv2d(x, weight, *edit, padding=1, backend="native"))
    assert y.isfinite().all()


@pytest.mark.parametrize("last", ["x", "weight", "both"])
def test_channels_last(capability: str, last: str) -> None:
    x, weight, *edit = inputs(SIZES[1], torch.float32)
    if last != "weight":
        x = x.contiguous(memory_format=torch.channels_last)
    if last != "x":
        weight = weight.contiguous(memory_format=torch.channels_last)
    y = edited_conv2d(x, weight, *edit, padding=1, backend="native")
    assert_right(y, exact.edited_conv2d(x, weight, *edit, *GEOMETRIES["same"]))
    assert y.stride() == conv2d(x, weight, padding=1).stride()


def test_strides(capability: str) -> None:
    x, weight, rows, offsets, indices, factors, bias = inputs(SIZES[1], torch.float32)
    right = exact.edited_conv2d(x, weight, rows, offsets, indices, factors, bias, *GEOMETRIES["plain"])
    spread = [t.repeat_interleave(2)[::2] for t in (rows, offsets, indices, factors, bias)]
    odd = x.transpose(-1, -2).contiguous().transpose(-1, -2)
    filters = weight.repeat_interleave(2, 1)[:, ::2]
    assert_right(edited_conv2d(odd, filters, *spread, backend="native"), right)


def test_empty_and_without_edit(native) -> None:
    x, weight, _, _, indices, factors, bias = inputs(SIZES[1], torch.float32)
    zero, none = torch.zeros(2, dtype=torch.int64), (indices[:0], factors[:0])
    assert edited_conv2d(x[:0], weight, zero, zero, *none, bias, backend="native").shape == (0, 34, 2, 2)
    bounds = torch.tensor([0, 4, 4, len(x)])
    y = edited_conv2d(x, weight, bounds, torch.zeros(4, dtype=torch.int64), *none, bias, backend="native")
    assert torch.equal(y, conv2d(x, weight, bias))


def test_threads_do_not_matter(capability: str) -> None:
    arguments = inputs((9, 66, 8, 8, 90, 3, 3), torch.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(edited_conv2d(*arguments, padding=1, backend="native"))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_gradients(native, geometry: str, backend: str) -> None:
    how = GEOMETRIES[geometry]
    x, weight, rows, offsets, indices, factors, bias = inputs((7, 4, 5, 6, 6, 3, 3), torch.float32, how[3])
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    edit = (rows, offsets, indices, factors)
    y = edited_conv2d(*leaves[:2], *edit, leaves[2], *how, backend=backend)
    grad = torch.randn_like(y)
    y.backward(grad)
    doubles = [t.double().requires_grad_() for t in (x, weight, bias)]
    edit = (rows, offsets, indices, factors.double())
    reference.edited_conv2d(*doubles[:2], *edit, doubles[2], *how).backward(grad.double())
    for leaf, double in zip(leaves, doubles, strict=True):
        torch.testing.assert_close(leaf.grad, double.grad.float(), rtol=1e-4, atol=1e-4)


def test_compiles_as_one_graph(native) -> None:
    x, weight, *edit = inputs(SIZES[0], torch.float32)

    def loss(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return edited_conv2d(x, weight, *edit, padding=1).pow(2).sum()

    leaves = [x.requires_grad_(), weight.requires_grad_()]
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for actual, wanted in zip(
        torch.autograd.grad(compiled(*leaves), leaves), torch.autograd.grad(loss(*leaves), leaves), strict=True
    ):
        torch.testing.assert_close(actual, wanted)


def call(**changes) -> torch.Tensor:
    """A valid call with some arguments changed."""
    arguments = {
        "x": torch.zeros(3, 2, 4, 4),
        "weight": torch.zeros(5, 2, 3, 3),
        "rows": torch.tensor([0, 1, 3]),
        "offsets": torch.tensor([0, 2, 3]),
        "indices": torch.tensor([4, 89, 0]),
        "factors": torch.zeros(3),
    }
    return edited_conv2d(**(arguments | changes))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.zeros(2, 4, 4)}, ValueError, r"x must have 4 dimensions, got shape \[2, 4, 4\]"),
        (
            {"weight": torch.zeros(5, 2, 3, 3).double()},
            TypeError,
            "weight must have dtype torch.float32, got torch.float64",
        ),
        ({"rows": torch.tensor([0, 1, 4])}, ValueError, "rows must ascend from 0 to 3"),
        ({"rows": torch.tensor([0, 4, 3])}, ValueError, "rows must ascend from 0 to 3"),
        ({"rows": torch.tensor([0, 3])}, ValueError, r"offsets must be \[2\], got \[3\]"),
        ({"rows": torch.tensor([0, 1, 3]).int()}, TypeError, "rows must have dtype torch.int64, got torch.int32"),
        (
            {"rows": torch.zeros(3, 1, dtype=torch.int64)},
            ValueError,
            r"rows must be .* got \[3, 1\]",
        ),
        ({"rows": torch.zeros(3, dtype=torch.int64, device="meta")}, ValueError, "rows must be on cpu, got meta"),
        ({"offsets": torch.tensor([1, 2, 3])}, ValueError, "offsets must ascend from 0 to 3"),
        (
            {"indices": torch.tensor([4, 90, 0])},
            ValueError,
            r"indices\[1\] = 90 is out of range",
        ),
        (
            {"indices": torch.tensor([-1, 9, 0])},
            ValueError,
            r"indices\[0\] = -1 is out of range",
        ),
        (
            {"indices": torch.tensor([9, 4, 0])},
            ValueError,
            r"indices\[1\] = 4 must be above .* in its group, 9",
        ),
        (
            {"indices": torch.tensor([4, 4, 0])},
            ValueError,
            r"indices\[1\] = 4 must be above .* in its group, 4",
        ),
        (
            {"indices": torch.tensor([4.0, 5.0, 0.0])},
            TypeError,
            "indices must have dtype torch.int64, got torch.float32",
        ),
        ({"factors": torch.zeros(2)}, ValueError, r"factors must be \[3\], got \[2\]"),
        ({"bias": torch.zeros(2)}, ValueError, r"bias must have shape \[5\], got \[2\]"),
        ({"padding": -1}, ValueError, "padding must be at least 0, got -1"),
        ({"groups": 2}, ValueError, "weight has 5 filters, which 2 groups do not divide"),
    ],
)
def test_errors_name_the_argument(changes: dict, error: type[Exception], message: str) -> None:
    assert call().shape == (3, 5, 2, 2)
    with pytest.raises(error, match=message):
        call(**changes)
