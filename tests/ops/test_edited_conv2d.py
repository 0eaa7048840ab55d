"""edited_conv2d on the CPU: threads, compilation, and errors. What is right: cases/test_edited_conv2d.py."""

import pytest
import torch

from cad_fast.ops import edited_conv2d
from tests.ops.calls import with_threads
from tests.ops.cases.test_edited_conv2d import SIZES, inputs


def test_threads_do_not_matter(capability: str) -> None:
    arguments = inputs((9, 66, 8, 8, 90, 3, 3), torch.float32)
    first, *others = with_threads((1, 2, 3), lambda: edited_conv2d(*arguments, padding=1, backend="native"))
    assert all(torch.equal(other, first) for other in others)


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
