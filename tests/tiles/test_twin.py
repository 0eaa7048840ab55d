"""The kernels for the tile unit, on its twin: every number of rows, every length of a sum, and what is not finite."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from cad_fast.ops import backends, edited_conv2d, edited_linear, masked_conv2d, masked_linear, pack_bits
from cad_fast.ops.registry import OPS
from tests.cuda import simt
from tests.ops import exact
from tests.ops.calls import with_threads
from tests.ops.cases.test_masked_linear import random_case, transposing
from tests.rounding import assert_right
from tests.tiles import twin

pytestmark = pytest.mark.skipif(twin.why_not() is not None, reason=str(twin.why_not()))


@pytest.fixture(autouse=True)
def tiles() -> Iterator[twin.Module]:
    """The twin, in use."""
    module = twin.load(twin.build())
    with twin.in_use(module):
        yield module


def check(variants: int, rows: int, n: int, k: int, transposed: bool) -> None:
    x, weight, words, bias = random_case(variants, rows, n, k, torch.bfloat16, transposed)
    y = masked_linear(x, weight, words, bias, None, transposed, backend="native")
    assert_right(y, exact.masked_linear(x, weight, words, bias, None, transposed))


@pytest.mark.parametrize("rows", range(1, 34))
@transposing
def test_every_number_of_rows(rows: int, transposed: bool) -> None:
    check(3, rows, 37, 75, transposed)


@transposing
def test_every_length_of_a_sum(transposed: bool) -> None:
    for length in [*range(1, 71), 511, 512, 513, 544, 1025]:
        check(2, 5, *((length, 35) if transposed else (35, length)), transposed)


@transposing
def test_every_number_of_outputs(transposed: bool) -> None:
    for outputs in range(1, 71):
        check(2, 18, *((40, outputs) if transposed else (outputs, 40)), transposed)


@transposing
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_spoils_no_other(transposed: bool, bad: float) -> None:
    x, weight, words, _ = random_case(2, 35, 45, 75, torch.bfloat16, transposed)
    expected = masked_linear(x, weight, words, None, None, transposed, backend="native")
    x[0, 17, 3], x[1, 34, -1] = bad, bad
    y = masked_linear(x, weight, words, None, None, transposed, backend="native")
    reference = exact.masked_linear(x, weight, words, None, None, transposed).value
    spoiled = ~reference.isfinite()
    assert spoiled[0, 17].any() and spoiled[1, 34].any() and int(spoiled.any(-1).sum()) == 2
    assert torch.equal(y.isnan(), reference.isnan())
    assert torch.equal(y[y.isinf()].double(), reference[reference.isinf()])
    spoiled[0, 17], spoiled[1, 34] = True, True
    assert torch.equal(y[~spoiled], expected[~spoiled])


@transposing
def test_more_rows_than_strips_at_once(transposed: bool) -> None:
    check(1, 1100, 20, 33, transposed)
    check(70, 3, 20, 33, transposed)


@transposing
def test_threads_do_not_matter(transposed: bool) -> None:
    x, weight, words, _ = random_case(9, 40, 300, 450, torch.bfloat16, transposed)
    whole, *others = with_threads(
        (1, 2, 3), lambda: masked_linear(x, weight, words, transposed=transposed, backend="native")
    )
    assert all(torch.equal(other, whole) for other in others)
    part = masked_linear(x[2:5, :7], weight, words[2:5], transposed=transposed, backend="native")
    assert torch.equal(part, whole[2:5, :7])


@transposing
def test_an_edit_of_nothing_gives_the_same_as_a_mask_of_nothing(transposed: bool) -> None:
    x, weight, words, bias = random_case(1, 50, 70, 600, torch.bfloat16, transposed)
    masked = masked_linear(x, weight, torch.zeros_like(words), bias, None, transposed, backend="native")
    none = torch.zeros(0, dtype=torch.int64)
    edit = torch.tensor([0, 50]), torch.tensor([0, 0]), none, none.float()
    assert torch.equal(edited_linear(x[0], weight, *edit, bias, transposed, backend="native"), masked[0])


def way_of(op: str) -> set[str]:
    return {way for way, count in OPS[op].ways.items() if count}


@pytest.fixture
def no_ways() -> None:
    """Forget which ways were taken."""
    for op in ("masked_linear", "edited_linear", "masked_conv2d"):
        OPS[op].ways.clear()


@pytest.mark.usefixtures("no_ways")
def test_tiles_are_used_where_they_pay() -> None:
    for rows in (1, 3):
        masked_linear(*random_case(2, rows, 33, 40, torch.bfloat16, False), backend="native")
    assert way_of("masked_linear") == {"one row per variant", "tiles, written anew for each variant"}
    OPS["masked_linear"].ways.clear()
    masked_linear(*random_case(2, 3, 33, 40, torch.float32, False), backend="native")
    assert not any("tiles" in way for way in way_of("masked_linear"))
    edited_linear(*simt.edited_case([2, 3], 33, 40, torch.bfloat16, False), backend="native")
    assert way_of("edited_linear") == {"tiles, patched for each group"}


@pytest.mark.usefixtures("no_ways")
@pytest.mark.parametrize(
    ("kernel", "size", "expected"),
    [(1, 16, "patches as rows of masked_linear"), (3, 8, "patches as rows of masked_linear"), (3, 16, None)],
)
def test_convolutions_of_few_positions_are_rows(kernel: int, size: int, expected: str | None) -> None:
    def values(*shape: int) -> Tensor:
        return torch.randn(shape).bfloat16()

    x, weight = values(3, 1, 8, size, size), values(6, 8, kernel, kernel)
    masked_conv2d(x, weight, pack_bits(torch.rand(3, 6, 8 * kernel**2) < 0.5), padding=kernel // 2, backend="native")
    rows, offsets = torch.tensor([0, 1, 3]), torch.tensor([0, 2, 2])
    edit = rows, offsets, torch.tensor([1, 7]), torch.zeros(2)
    edited_conv2d(x.flatten(0, 1), weight, *edit, padding=kernel // 2, backend="native")
    assert (expected in way_of("masked_conv2d")) == (expected is not None)
    assert bool(way_of("edited_linear")) == (expected is not None)


def test_the_module_in_use_otherwise_has_no_twin(tiles: twin.Module) -> None:
    assert tiles.build_info()["flags"] == "tile twin"
    assert "twin" not in str(tiles.other.build_info()) and "twin" not in str(tiles.other.capabilities())
    assert backends.native.module() is tiles
