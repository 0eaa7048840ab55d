"""Some of everything on one build of the kernels: what a planted bug must fail, also under AddressSanitizer.

Run as a program: python -m tests.cuda.battery LIBRARY OPERATOR; tensors are then no larger than they must be.
"""

import sys
from pathlib import Path

import torch

from cad_fast.ops import backends
from tests.cuda import simt
from tests.ops import exact
from tests.rounding import assert_right

TYPES = (torch.float32, torch.float16, torch.bfloat16)

# (variants, rows, n, k): one for each shape of tile, with rests everywhere and with rows of 16 bytes.
MASKED = ((9, 3, 67, 129), (5, 13, 72, 200), (2, 40, 136, 72), (1, 131, 130, 69), (3, 1, 40, 264))

# Rows of each group, n, k.
EDITED = (([3, 16, 1], 133, 201), ([0, 150, 2], 72, 136))


# Sizes that the Hopper kernels take: (variants, rows, n, k) for each tile, and groups of rows.
HOPPER = ((9, 3, 72, 136), (3, 16, 136, 72), (5, 40, 136, 136), (2, 100, 72, 72), (2, 150, 264, 136))
HOPPER_EDITED = (([3, 16, 0, 1], 136, 200), ([0, 150, 70], 72, 136))


def run(library: Path, op: str, guards: bool = True, orders: dict[str, int] = simt.ORDERS) -> None:
    """Raise AssertionError or RuntimeError if anything is not as it should be."""
    loaded = simt.load(library)
    if op == "wgmma_linear":
        run_hopper(loaded, guards, orders)
        return
    for order in orders.values():
        torch.manual_seed(order)
        runner = simt.Runner(loaded, order, guards=guards)
        for dtype in TYPES:
            for transposed in (False, True):
                if op == "masked_linear":
                    for shape in MASKED:
                        case = simt.masked_case(*shape, dtype, transposed)
                        case[4] = torch.tensor([0.0, 1.0, -1.5, 0.25])[torch.arange(shape[0]) % 4]
                        compare(runner, op, case)
                else:
                    for sizes, n, k in EDITED:
                        compare(runner, op, simt.edited_case(sizes, n, k, dtype, transposed))


def run_hopper(loaded: backends.cuda.Library, guards: bool, orders: dict[str, int]) -> None:
    """The same for the kernels of Hopper's own instructions."""
    for order in orders.values():
        torch.manual_seed(order)
        runner = simt.Runner(loaded, order, guards=guards, backend="hopper")
        for dtype in TYPES[1:]:
            for transposed in (False, True):
                for shape in HOPPER:
                    case = simt.masked_case(*shape, dtype, transposed)
                    compare(runner, "masked_linear", case)
                    case[4] = torch.tensor([0.0, 1.0, -1.5, 0.25])[torch.arange(shape[0]) % 4]
                    compare(runner, "masked_linear", case)
                for sizes, n, k in HOPPER_EDITED:
                    compare(runner, "edited_linear", simt.edited_case(sizes, n, k, dtype, transposed))
            for stride, kernel in ((1, 3), (2, 3), (1, 1)):
                compare(runner, "masked_conv2d", simt.masked_convolution(3, 2, dtype, kernel, stride))
                compare(runner, "edited_conv2d", simt.edited_convolution([1, 0, 3], dtype, kernel, stride))


def compare(runner: simt.Runner, op: str, case: list) -> torch.Tensor:
    """The result, which must be as near the float64 one as rounding allows."""
    actual = runner(op, *case)
    assert actual.dtype == case[0].dtype
    assert_right(actual, getattr(exact, op)(*case))
    return actual


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2], guards=False, orders={"shuffled": 7})
