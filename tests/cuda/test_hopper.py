"""The Hopper kernels on the CPU, thread by thread; mistakes put into copies of them, each of which must be found."""

import pytest
import torch

from cad_fast.ops import backends, pack_bits
from tests.cuda import battery, simt

pytestmark = pytest.mark.skipif(simt.why_not() is not None, reason=str(simt.why_not()))

OP = "wgmma_linear"
KERNEL = "wgmma_linear.cuh"

# name: (file, text, what takes its place)
BUGS = {
    "registers are filled while products read them": (KERNEL, "wait_products<sides - 1>();", "wait_products<sides>();"),
    "sums are read before the last products": (KERNEL, "    wait_products<0>();\n", "    wait_products<1>();\n"),
    "a lot is read before it is there": (
        KERNEL,
        "    wait(full(lot % Tile::stages), lot / Tile::stages % 2);\n",
        "",
    ),
    "a stage is filled before all have read it": (
        KERNEL,
        "      wait(empty(stage), (lot / Tile::stages + 1) % 2);  // of the lot that was there before\n",
        "",
    ),
    "a stage is given back before its products have ended": (KERNEL, "if (group == 1) {", "if (group == 0) {"),
    "words are read before they are there": (
        KERNEL,
        "wait_copies<Tile::word_lots - 2>();",
        "wait_copies<Tile::word_lots - 1>();",
    ),
    "no barrier while sums are turned": (
        KERNEL,
        "    barrier_of_first<product_threads>();\n    constexpr int parts",
        "    constexpr int parts",
    ),
    "no barrier before sums are turned": (
        KERNEL,
        "    barrier_of_first<product_threads>();\n    write();",
        "    write();",
    ),
    "parts of rows are not exchanged": (KERNEL, "return part ^ (row % 8);", "return part + 0 * row;"),
    "the bit of a neighbour": (KERNEL, "found.of[i][step / 2] << (6 - 2 * t)", "found.of[i][step / 2] << (7 - 2 * t)"),
    "the byte of a neighbour": (KERNEL, "step % 2 * 2 + i / 2;", "step % 2 * 2 + i % 2;"),
    "a row beyond the run is written": (
        KERNEL,
        "if (row % Tile::rows >= run.rows ||",
        "if (row % Tile::rows > run.rows ||",
    ),
    "positions begin in the row before": (
        KERNEL,
        "position / window_.out_width * window_.stride[0] - window_.padding[0]",
        "position / window_.out_width * window_.stride[0] - window_.padding[0] + 1",
    ),
    "elements of the kernel go down first": (
        KERNEL,
        "element % window_.kernel[1] * window_.dilation[1], element / window_.kernel[1] * window_.dilation[0],",
        "element / window_.kernel[1] * window_.dilation[1], element % window_.kernel[1] * window_.dilation[0],",
    ),
}


@pytest.fixture(scope="module")
def library() -> backends.cuda.Library:
    """The kernels as they are."""
    return simt.load(simt.build())


def test_nothing_is_found_where_nothing_is_planted() -> None:
    battery.run(simt.build(), OP, orders={"shuffled": simt.ORDERS["shuffled"]})


@pytest.mark.slow
def test_nothing_is_found_in_any_order() -> None:
    battery.run(simt.build(), OP)


QUICK = 2
"""So many bugs are planted in each run of the tests; to build each takes ten seconds."""


@pytest.mark.parametrize(
    "bug", [pytest.param(bug, marks=[pytest.mark.slow] * (i >= QUICK)) for i, bug in enumerate(BUGS)]
)
def test_found(bug: str) -> None:
    path = simt.build(BUGS[bug], only=OP)
    with pytest.raises((AssertionError, RuntimeError)):
        battery.run(path, OP)


@pytest.mark.parametrize("rows", [1, 40, 100, 200])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_removed_does_not_leak(library: backends.cuda.Library, rows: int, bad: float) -> None:
    runner = simt.Runner(library, 7, backend="hopper")
    for dtype in battery.TYPES[1:]:
        for transposed in (False, True):
            case = simt.masked_case(2, rows, 56, 80, dtype, transposed)
            mask = torch.rand(2, 56, 80) < 0.5
            mask[:, ::7, ::3] = True
            case[1][::7, ::3], case[2] = bad, pack_bits(mask)
            battery.compare(runner, "masked_linear", case)


def test_bits_behind_the_last_element_are_ignored(library: backends.cuda.Library) -> None:
    runner = simt.Runner(library, 7, backend="hopper")
    for rows in (3, 40, 150):
        case = simt.masked_case(2, rows, 40, 72, torch.bfloat16, False)
        case[1][:, -1], case[4] = 1, torch.full((2,), float("inf"))
        case[2] = pack_bits(torch.zeros(2, 40, 72, dtype=torch.bool))
        expected = runner("masked_linear", *case)
        case[2][..., -1] |= -(1 << 8)
        assert expected.isfinite().all() and torch.equal(runner("masked_linear", *case), expected)


@pytest.mark.parametrize("rows", [3, 40, 100])
def test_a_row_is_the_same_whatever_the_tile(library: backends.cuda.Library, rows: int) -> None:
    runner = simt.Runner(library, 7, backend="hopper")
    case = simt.masked_case(2, 300, 72, 136, torch.bfloat16, False)
    expected = runner("masked_linear", *case)[:, :rows]
    case[0] = case[0][:, :rows].contiguous()
    assert torch.equal(runner("masked_linear", *case), expected)


def test_groups_without_rows_write_nothing(library: backends.cuda.Library) -> None:
    """An edit whose factors differ is multiplied by itself; where it has no rows there is nothing to multiply."""
    case = simt.edited_case([5, 3, 0, 2], 72, 136, torch.bfloat16, False)
    battery.compare(simt.Runner(library, 7, backend="hopper"), "edited_linear", case)


@pytest.mark.parametrize(
    ("op", "shapes", "reason"),
    [
        ("masked_linear", [(2, 3, 20), (16, 20)], "multiple of 8 elements, the weight's rows have 20"),
        ("masked_linear", [(2, 3, 24), (16, 24)], None),
        ("masked_conv2d", [(2, 1, 32, 8, 8), (16, 32, 3, 3)], "a multiple of 64 channels, x has 32"),
        ("masked_conv2d", [(2, 1, 64, 8, 8), (16, 64, 3, 3)], None),
    ],
)
def test_sizes_that_are_refused(op: str, shapes: list[tuple[int, ...]], reason: str | None) -> None:
    x, weight = (torch.zeros(shape, dtype=torch.bfloat16) for shape in shapes)
    geometry = ([1, 1], [1, 1], [1, 1], 1, None) if op.endswith("conv2d") else ()
    found = backends.hopper.why_not_shapes(op, (x, weight, None, None, None, *geometry))
    assert (reason is None) == (found is None) and (reason or "") in (found or "")
