"""Plans of edits: the same bits with and without, made once, made anew after a change, never kept where told not to."""

import pytest
import torch
from torch import Tensor

from cad_fast import remembered
from cad_fast.ops import edited_linear
from cad_fast.ops.registry import OPS
from tests.ops import exact
from tests.ops.cases.test_edited_linear import NATIVE, random_case
from tests.ops.cases.test_masked_linear import transposing
from tests.rounding import assert_right

FOUND = "packed panels, patched for each group"
PLANNED = "packed panels, patched for each group by a plan"


def run(*case: Tensor, transposed: bool = False) -> tuple[Tensor, str]:
    """The native result, and the way in which it was computed."""
    before = OPS["edited_linear"].ways.copy()
    y = edited_linear(*case, transposed=transposed, backend="native")
    (way,) = OPS["edited_linear"].ways - before
    return y, way


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("share", [0.1, 1.1], ids=["few", "all"])
@pytest.mark.parametrize("zero", [False, True], ids=["factors", "removed"])
@transposing
def test_a_plan_changes_no_bit(
    capability: str, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, transposed: bool, share: float, zero: bool
) -> None:
    for sizes, n, k in [*NATIVE, ([1] * 16, 70, 800), ([1, 1, 40, 2, 1, 3], 70, 400)]:
        *case, factors = random_case(sizes, n, k, dtype, transposed, share)
        factors = factors * 0 if zero else factors
        planned, way = run(*case, factors, transposed=transposed)
        assert way == PLANNED or not len(factors)
        with monkeypatch.context() as patches:
            patches.setenv("CAD_FAST_REMEMBERED_BYTES", "0")
            found, _ = run(*case, factors, transposed=transposed)
        assert torch.equal(planned, found)


def test_what_is_left_out_does_not_hide_an_infinite_x(capability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows under bits of their own would not meet the zeros in the place of removed weights."""
    *case, factors = random_case([1] * 16, 70, 800, torch.float32, False)
    factors = factors * 0
    case[0][3, ::7] = float("inf")
    y, _ = run(*case, factors)
    monkeypatch.setenv("CAD_FAST_REMEMBERED_BYTES", "0")
    assert y[3].isnan().all()
    torch.testing.assert_close(y, run(*case, factors)[0], rtol=0, atol=0, equal_nan=True)


def test_a_plan_is_made_once(native) -> None:
    case = random_case([3, 4, 5], 40, 50, torch.float32, False)
    counts = [remembered.report()]
    for _ in range(3):
        edited_linear(*case, backend="native")
        counts.append(remembered.report())
    assert [count["prepared"] - counts[0]["prepared"] for count in counts[1:]] == [1, 1, 1]
    assert counts[3]["found"] - counts[1]["found"] == 2


@pytest.mark.parametrize("changed", ["weight", "offsets", "indices", "factors"])
@transposing
def test_a_change_in_place_is_seen(native, changed: str, transposed: bool) -> None:
    edit = {
        "rows": torch.tensor([0, 3, 7]),
        "offsets": torch.tensor([0, 2, 4]),
        "indices": torch.tensor([3, 9, 20, 1999]),
        "factors": torch.tensor([0.0, 2.0, -1.0, 0.5]),
    }
    given = {"x": torch.randn(7, 40 if transposed else 50), "weight": torch.randn(40, 50), **edit}
    before = edited_linear(**given, transposed=transposed, backend="native")
    if changed in ("offsets", "indices"):
        given[changed][1] -= 1
    else:
        given[changed].mul_(-1.5)
    y = edited_linear(**given, transposed=transposed, backend="native")
    assert not torch.equal(y, before)
    assert_right(y, exact.edited_linear(**given, transposed=transposed))


def test_the_weight_is_never_kept(native) -> None:
    """Adapters are merged through weight.data, which torch does not count."""
    x, weight, *edit = random_case([3, 4], 40, 50, torch.float32, False)
    edited_linear(x, weight, *edit, backend="native")
    weight.data.mul_(2)
    assert_right(edited_linear(x, weight, *edit, backend="native"), exact.edited_linear(x, weight, *edit))


def test_nothing_is_planned_where_nothing_is_kept(native, monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case([3, 4], 40, 50, torch.float32, False)
    assert run(*case)[1] == PLANNED
    with torch.inference_mode():
        inference = [tensor.clone() for tensor in case]
        assert run(*inference)[1] == FOUND
    monkeypatch.setenv("CAD_FAST_REMEMBERED_BYTES", "0")
    assert run(*case)[1] == FOUND


def test_too_little_memory_is_no_error(native, monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case([3, 4], 40, 50, torch.float32, False)
    monkeypatch.setenv("CAD_FAST_REMEMBERED_BYTES", "1")
    assert_right(edited_linear(*case, backend="native"), exact.edited_linear(*case))
