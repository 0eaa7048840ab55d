"""Mistakes put into copies of the CUDA kernels: the checks must fail with every one of them, or they check nothing."""

import os
import subprocess
import sys

import pytest

from cad_fast.ops import backends
from tests.cuda import battery, simt
from tests.sanitize import OPTIONS, runtime

pytestmark = pytest.mark.skipif(simt.why_not() is not None, reason=str(simt.why_not()))

MASKED, EDITED = "masked_linear", "edited_linear"

# name: (operator, file, text, what takes its place)
BUGS = {
    "no barrier before a lot is used": (
        MASKED,
        "linear.cuh",
        "__syncthreads();  // all threads' copies of this lot are there, and all are done with the lot before",
        "",
    ),
    "a copy begins before the others have read": (
        MASKED,
        "linear.cuh",
        """    __syncthreads();  // all threads' copies of this lot are there, and all are done with the lot before
    begin(lot + Tile::stages - 1);
""",
        "    begin(lot + Tile::stages - 1);\n    __syncthreads();\n",
    ),
    "no barrier after the edit of a tile": (
        EDITED,
        "linear.cuh",
        "if (ablation.patch(stage.weight, stage.words, outer, lot * Tile::depth)) __syncthreads();",
        "ablation.patch(stage.weight, stage.words, outer, lot * Tile::depth);",
    ),
    "no barrier before shared memory is used again": (
        MASKED,
        "linear.cuh",
        "  wait_copies<0>();\n  __syncthreads();\n",
        "  wait_copies<0>();\n",
    ),
    "no barrier while sums are turned": (MASKED, "mma_linear.cuh", "  __syncthreads();\n", ""),
    "a barrier that half of the threads reach": (
        MASKED,
        "mma_linear.cuh",
        "  __syncthreads();\n",
        "  if (threadIdx.x < 64) __syncthreads();\n",
    ),
    "copies are not waited for": (MASKED, "linear.cuh", "wait_copies<Tile::stages - 2>", "wait_copies<Tile::stages>"),
    "one group too few is waited for": (
        EDITED,
        "linear.cuh",
        "wait_copies<Tile::stages - 2>",
        "wait_copies<Tile::stages - 1>",
    ),
    "one vector beyond the row": (MASKED, "linear.cuh", "first + c < columns;", "first + c <= columns;"),
    "one element beyond the row": (
        EDITED,
        "linear.cuh",
        "first + c + e < columns ?",
        "first + c + e <= columns ?",
    ),
    "one row of x too many": (
        MASKED,
        "mma_linear.cuh",
        "row % Tile::rows >= ablation.rows(segment)",
        "row % Tile::rows > ablation.rows(segment)",
    ),
    "the bit of a neighbour": (
        MASKED,
        "ablations.cuh",
        "bits.odd[i] = word << (6 - 2 * t)",
        "bits.odd[i] = word << (7 - 2 * t)",
    ),
    "the bit of a neighbour, transposed": (
        MASKED,
        "ablations.cuh",
        "bits.even[i] = row[0] << (7 - g)",
        "bits.even[i] = row[0] << (6 - g % 7)",
    ),
    "the bit of a neighbour, float32": (MASKED, "ablations.cuh", ">> (output % 32)", ">> (output % 31)"),
    "the mask of the next variant": (
        MASKED,
        "ablations.cuh",
        "  words += segment * Tile::words;\n    Bits bits;",
        "  words += (segment ^ 1) % Tile::segments * Tile::words;\n    Bits bits;",
    ),
    "the halves of operand b swapped": (
        MASKED,
        "mma_linear.cuh",
        "b[2 * half], b[2 * half + 1]",
        "b[2 * half + 1], b[2 * half]",
    ),
    "an edit one column too far": (
        EDITED,
        "ablations.cuh",
        "if (column >= Tile::weight_columns) break;",
        "if (column > Tile::weight_columns) break;",
    ),
    "an edit that stops one entry early": (
        EDITED,
        "ablations.cuh",
        "for (; next_ < end_; ++next_)",
        "for (; next_ + 1 < end_; ++next_)",
    ),
    "entries of the row before": (
        EDITED,
        "edited_linear.cu",
        "indices[middle] < wanted",
        "indices[middle] + 1 < wanted",
    ),
}


@pytest.mark.parametrize("op", [MASKED, EDITED])
def test_nothing_is_found_where_nothing_is_planted(op: str) -> None:
    battery.run(simt.build(), op)


@pytest.mark.parametrize("bug", BUGS)
def test_found(bug: str) -> None:
    op, *patch = BUGS[bug]
    library = simt.build(tuple(patch), only=op)
    with pytest.raises((AssertionError, RuntimeError)):
        battery.run(library, op)


def sanitized(op: str, *patches: simt.Patch) -> subprocess.CompletedProcess:
    """The battery in a process of its own, with AddressSanitizer in the kernels."""
    library = simt.build(*patches, flags=simt.SANITIZE, only=op)
    preload = " ".join(map(runtime, ("libasan.so", "libstdc++.so.6")))
    environment = os.environ | OPTIONS | {"LD_PRELOAD": preload, "PYTHONPATH": str(simt.ROOT)}
    command = [sys.executable, "-m", "tests.cuda.battery", str(library), op]
    return subprocess.run(command, cwd=simt.ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("op", [MASKED, EDITED])
def test_nothing_outside_of_any_memory_is_touched(op: str) -> None:
    result = sanitized(op)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("op", "patch"),
    [
        (MASKED, ("ablations.cuh", "word < masks_.row_words;", "word <= masks_.row_words;")),
        (MASKED, ("linear.cuh", "first + c + e < columns ?", "first + c + e <= columns ?")),
        (EDITED, ("linear.cuh", "first_row + r < rows ?", "first_row + r <= rows ?")),
        (EDITED, ("ablations.cuh", "first_row + own >= edits_.n", "first_row + own > edits_.n")),
        (EDITED, ("edited_linear.cu", "if (i >= count) return;", "if (i > count) return;")),
    ],
    ids=lambda value: value if isinstance(value, str) else value[2],
)
def test_the_sanitizer_sees_a_step_outside(op: str, patch: simt.Patch) -> None:
    result = sanitized(op, patch)
    assert result.returncode != 0 and "ERROR: AddressSanitizer" in result.stderr, result.stderr[-3000:]


def test_shared_memory_that_is_too_small_is_seen() -> None:
    bytes_ = "constexpr int bytes = Tile::stages * stage_bytes<Tile, MaskedFew<Tile>>"
    library = simt.build((f"{MASKED}.cu", bytes_, f"{bytes_} - 4"), only=MASKED)
    with pytest.raises(RuntimeError, match=r"cp.async: the destination is not in shared memory"):
        battery.run(library, MASKED)


def test_a_message_is_not_lost() -> None:
    library = simt.load(simt.build())
    assert isinstance(library, backends.cuda.Library) and library.message(1) == "an error code"
