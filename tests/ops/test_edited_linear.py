"""edited_linear on the CPU: threads, compilation, and errors. What is right: cases/test_edited_linear.py."""

import pytest
import torch
from torch import Tensor

from cad_fast.ops import edited_linear
from tests.ops.calls import BACKENDS, with_threads
from tests.ops.cases.test_edited_linear import random_case
from tests.ops.cases.test_masked_linear import transposing


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@transposing
def test_threads_do_not_matter(capability: str, dtype: torch.dtype, transposed: bool) -> None:
    case = random_case([40, 9, 1, 80, 30], 300, 450, dtype, transposed)
    first, *others = with_threads((1, 2, 3), lambda: edited_linear(*case, None, transposed, backend="native"))
    assert all(torch.equal(other, first) for other in others)


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
