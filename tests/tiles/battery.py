"""Some of everything on one build of the twin: what a planted bug must fail, also under AddressSanitizer.

Run as a program, as the twin ends its process where hardware would: python -m tests.tiles.battery LIBRARY OPERATOR.
Under AddressSanitizer there are no guard zones, so that it sees a step outside.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from cad_fast.ops import pack_bits
from cad_fast.ops.registry import OPS
from tests.cuda import simt
from tests.ops import exact
from tests.rounding import assert_right
from tests.tiles import twin

# (variants, rows, n, k): strips of 16 and of 32 rows with rests, panels with rests of less than a tile and more,
# several blocks of the sum with rests, and odd k.
MASKED = ((3, 3, 67, 129), (2, 16, 40, 72), (2, 33, 53, 1057), (1, 70, 597, 38), (40, 2, 33, 31))

# Rows of each group, n, k.
EDITED = (([3, 16, 1, 40], 67, 129), ([0, 90, 2], 53, 1057), ([1, 33], 597, 38))

# (variants, rows, n, k): several variants in a lot of rows, and several lots of rows for a variant.
SCORES = ((5, 16, 67, 97), (20, 33, 40, 31), (2, 301, 133, 290))


def poison_scratch(module: twin.Module) -> None:
    """Leave NaNs in the memory that threads keep for their next call."""
    for transposed in (False, True):
        case = simt.masked_case(2, 33, 40, 600, torch.bfloat16, transposed)
        case[0].fill_(float("nan"))
        with twin.in_use(module), mock.patch.object(torch, "empty", simt.Guarded(0).empty):
            OPS["masked_linear"].implementations["native"](*case)


def of_masked_linear(compare: Callable[..., None]) -> None:
    for shape in MASKED:
        for transposed in (False, True):
            case = simt.masked_case(*shape, torch.bfloat16, transposed)
            compare(*case)
            case[4] = torch.tensor([0.0, 1.0, -1.5, 0.25])[torch.arange(shape[0]) % 4]
            compare(*case)
            # Nothing is ablated, but the bits behind the last element say so.
            case[2] = torch.zeros_like(case[2])
            case[2][..., -1] |= -1 << shape[3] % 32 if shape[3] % 32 else 0
            case[4].fill_(float("inf"))
            compare(*case)


def of_edited_linear(compare: Callable[..., None]) -> None:
    for sizes, n, k in EDITED:
        for transposed in (False, True):
            compare(*simt.edited_case(sizes, n, k, torch.bfloat16, transposed))


def of_masked_linear_scores(compare: Callable[..., None]) -> None:
    for variants, rows, n, k in SCORES:
        sides = torch.randn(variants, rows, n), torch.randn(variants, rows, k), torch.randn(n, k)
        grad, x, weight = (tensor.bfloat16() for tensor in sides)
        compare(grad, x, weight, pack_bits(torch.rand(variants, n, k) < 0.4), *torch.randn(2, n, k))


CASES = {
    "masked_linear": of_masked_linear,
    "edited_linear": of_edited_linear,
    "masked_linear_scores": of_masked_linear_scores,
}


def run(library: Path, op: str, guards: bool = True) -> None:
    """Raise AssertionError if anything is not as it should be."""
    torch.manual_seed(0)
    module = twin.load(library)
    assert module.capability() == "amx"

    def compare(*case: Any) -> None:
        poison_scratch(module)
        guarded = simt.Guarded(0) if guards else None
        copy = guarded.copy if guarded else Tensor.clone
        given = [copy(value) if isinstance(value, Tensor) else value for value in case]
        empty = guarded.empty if guarded else torch.empty
        with twin.in_use(module), mock.patch.object(torch, "empty", empty):
            result = OPS[op].implementations["native"](*given)
        if guarded:
            guarded.check()
        if op == "masked_linear_scores":  # adds to its last two arguments
            for actual, right in zip(given[4:], exact.masked_linear_scores(*case[:4], case[4:]), strict=True):
                assert_right(actual, right)
        else:
            assert_right(result, getattr(exact, op)(*case))

    CASES[op](compare)


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2], guards="ASAN_OPTIONS" not in os.environ)
