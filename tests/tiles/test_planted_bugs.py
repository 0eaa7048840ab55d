"""Mistakes put into copies of the kernels for the tile unit: the checks must fail with every one."""

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from tests.sanitize import OPTIONS, runtime
from tests.tiles import battery, twin

pytestmark = pytest.mark.skipif(twin.why_not() is not None, reason=str(twin.why_not()))

MASKED, EDITED, SCORES = "masked_linear", "edited_linear", "masked_linear_scores"

WRONG, REFUSED, OUTSIDE = "AssertionError", "tile twin: ", "ERROR: AddressSanitizer"

# name: (operator, what shows it, file, text, what takes its place)
BUGS = {
    "a row too few": (
        MASKED,
        REFUSED,
        "multiply.h",
        "low ? rows - tile_side : rows;",
        "low ? rows - tile_side : rows - 1;",
    ),
    "tiles as the strip before had them": (
        EDITED,
        REFUSED,
        "multiply.h",
        "if (rows == rows_) return;",
        "if (rows_ != 0) return;",
    ),
    "half of each row": (MASKED, REFUSED, "multiply.h", "== 0 ? 0 : 2 * tile_depth", "== 0 ? 0 : tile_depth"),
    "tiles that are not set": (MASKED, REFUSED, "multiply.h", "    TileUnit::configure(config);\n", ""),
    "tiles that are not given up": (MASKED, REFUSED, "multiply.h", "if (rows_ != 0) TileUnit::release();", ""),
    "another palette": (MASKED, REFUSED, "config.h", "palette = 1;", "palette = 0;"),
    "sums that begin with what was there": (
        MASKED,
        WRONG,
        "multiply.h",
        "down == 2) TileUnit::zero<2>();",
        "down == 3) TileUnit::zero<2>();",
    ),
    "the sums of the block before forgotten": (
        MASKED,
        WRONG,
        "multiply.h",
        "if constexpr (down == 2) TileUnit::load<2>(low_sums, sums_stride);",
        "if constexpr (down == 2) TileUnit::zero<2>();",
    ),
    "the step before a rest forgotten": (
        MASKED,
        WRONG,
        "product.h",
        "block.element + whole * tile_depth > 0",
        "block.element > 0",
    ),
    "the upper rows twice": (MASKED, WRONG, "multiply.h", "TileUnit::load<5>(a + tile_side", "TileUnit::load<5>(a + 0"),
    "pairs of a wide strip in a narrow one": (MASKED, WRONG, "product.h", "x, 4 * strip.width,", "x, 4 * strip_rows,"),
    "an odd element of x with the next one": (
        MASKED,
        WRONG,
        "turn.h",
        "first_elements(count - element);",
        "first_elements(count - element + 1);",
    ),
    "a rest of x with what is behind it": (
        MASKED,
        WRONG,
        "product.h",
        "_mm512_maskz_loadu_epi16(there, x + r",
        "_mm512_maskz_loadu_epi16(there | ~0u, x + r",
    ),
    "a rest of the weight with what is behind it": (
        MASKED,
        WRONG,
        "block.h",
        "first_elements(block.elements - i)",
        "~0u",
    ),
    "no zeros below a transposed weight": (
        EDITED,
        WRONG,
        "block.h",
        "i < block.elements ?",
        "i <= block.elements ?",
    ),
    "edits that are not taken back": (EDITED, WRONG, "product.h", "if (segment >= 0) weights_.restore(block_);", ""),
    "an edit one element too far": (
        EDITED,
        WRONG,
        "edited_linear.cpp",
        "_mm512_mask_cmplt_epi64_mask(",
        "_mm512_mask_cmple_epi64_mask(",
    ),
    "edits that begin anew in each block": (
        EDITED,
        WRONG,
        "edited_linear.cpp",
        "block.element == 0 ? begin[0] : cursors[o]",
        "begin[0]",
    ),
    "edits that begin anew in each panel": (
        EDITED,
        WRONG,
        "edited_linear.cpp",
        "block.first_panel ? lower_bound(edit.indices, begin[0], begin[1], first) : cursors[row]",
        "begin[0]",
    ),
    "edits out of their order": (
        EDITED,
        WRONG,
        "edited_linear.cpp",
        "_mm256_and_si256(output, _mm256_set1_epi32(4)), 3)",
        "_mm256_and_si256(output, _mm256_set1_epi32(4)), 2)",
    ),
    "the variant's sums go on from the one before": (
        SCORES,
        WRONG,
        "masked_linear_scores.cpp",
        "products_ + tile * side * side, !first)",
        "products_ + tile * side * side, !first || i > 0)",
    ),
    "only the last rows of a variant": (
        SCORES,
        WRONG,
        "masked_linear_scores.cpp",
        "products_ + tile * side * side, !first)",
        "products_ + tile * side * side, first && last && i < 0)",
    ),
    "rows of the next variant": (
        SCORES,
        WRONG,
        "masked_linear_scores.cpp",
        "r < row_count ? there : 0",
        "r <= row_count ? there : 0",
    ),
    "sums that are not zero at first": (
        SCORES,
        WRONG,
        "masked_linear_scores.cpp",
        "    std::memset(sums_, 0,",
        "    if (problem_.variants < 0) std::memset(sums_, 0,",
    ),
    "kept for ablated": (SCORES, WRONG, "masked_linear_scores.cpp", "_knot_mask16(ablated)", "ablated"),
    "a column too few": (
        SCORES,
        WRONG,
        "masked_linear_scores.cpp",
        "first_elements(block_.k_end - k - j));",
        "first_elements(block_.k_end - 1 - k - j));",
    ),
    "a factor for what is not there": (MASKED, WRONG, "masked_linear.cpp", "there & ablated, Pairs", "ablated, Pairs"),
    "the mask of the next variant": (
        MASKED,
        WRONG,
        "masked_linear.cpp",
        "(variant * task_.outer + block.output)",
        "((variant ^ 1) % (task_.rows / task_.variant_rows) * task_.outer + block.output)",
    ),
    "the block of the variant before": (
        MASKED,
        WRONG,
        "product.h",
        "if (strips_[i].segment != segment) {",
        "if (segment < 0) {",
    ),
    "outputs of a pair swapped": (MASKED, WRONG, "turn.h", "cvtne2ps_pbh(odd, even)", "cvtne2ps_pbh(even, odd)"),
    "outputs out of their order": (MASKED, WRONG, "turn.h", "(o & 24) >> 1 | (o & 4) << 2", "(o & 28)"),
    "outputs behind the last one": (
        MASKED,
        WRONG,
        "turn.h",
        "const __mmask32 there = first_elements(outputs);",
        "const __mmask32 there = first_elements(outputs + 1);",
    ),
    "rows behind the last one": (
        MASKED,
        WRONG,
        "turn.h",
        "if (first + r < rows) _mm512",
        "if (first + r <= rows) _mm512",
    ),
}


def battery_of(op: str, *patches: twin.Patch, flags: Sequence[str] = (), **environment: str) -> str:
    """What the battery says in a process of its own; nothing if all is right."""
    library = twin.build(*patches, flags=flags, only=op)
    command = [sys.executable, "-m", "tests.tiles.battery", str(library), op]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(twin.ROOT)} | environment
    result = subprocess.run(command, cwd=twin.ROOT, env=environment, capture_output=True, text=True, check=False)
    return result.stderr if result.returncode else ""


@pytest.mark.parametrize("op", battery.CASES)
def test_nothing_is_found_where_nothing_is_planted(op: str) -> None:
    assert battery_of(op) == ""


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_found(bug: str) -> None:
    op, symptom, *patch = BUGS[bug]
    assert symptom in battery_of(op, tuple(patch))


def sanitized(op: str, *patches: twin.Patch) -> str:
    """The same with AddressSanitizer and UndefinedBehaviorSanitizer in the kernels."""
    preload = " ".join(map(runtime, ("libasan.so", "libstdc++.so.6")))
    return battery_of(op, *patches, flags=twin.SANITIZE, **(OPTIONS | {"LD_PRELOAD": preload}))


@pytest.mark.parametrize("op", battery.CASES)
def test_nothing_outside_of_any_memory_is_touched(op: str) -> None:
    assert sanitized(op) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("op", "patch"),
    [
        (MASKED, ("multiply.h", "  tiles.use_rows(rows);", "  tiles.use_rows(rows + rows % 2);")),
        (MASKED, ("multiply.h", "if (rows == rows_) return;", "if (rows <= rows_) return;")),
    ],
    ids=lambda value: value if isinstance(value, str) else value[2].strip(),
)
def test_the_sanitizer_sees_a_step_outside(op: str, patch: twin.Patch) -> None:
    assert OUTSIDE in sanitized(op, patch)
