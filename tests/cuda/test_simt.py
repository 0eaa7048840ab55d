"""What is about the CUDA kernels alone, run on the CPU thread by thread. What is right: tests/ops/cases."""

import ctypes

import pytest
import torch

from tests.cuda import simt
from tests.cuda.battery import TYPES, compare
from tests.ops.cases.test_masked_linear import transposing
from tests.ops.places import shim_library

pytestmark = pytest.mark.skipif(simt.why_not() is not None, reason=str(simt.why_not()))


dtypes = pytest.mark.parametrize("dtype", TYPES, ids=str)


@pytest.fixture(scope="session")
def library():
    """The kernels as they are."""
    return shim_library()


@dtypes
@transposing
def test_unaligned_tensors(library, dtype, transposed: bool) -> None:
    runner = simt.Runner(library, 7, shift=1)
    compare(runner, "masked_linear", simt.masked_case(3, 20, 72, 136, dtype, transposed))
    compare(runner, "edited_linear", simt.edited_case([3, 20], 72, 136, dtype, transposed))


def test_the_shim_rounds_as_torch_does(library) -> None:
    convert = library.loaded.simt_convert
    bits = torch.randint(-(2**31), 2**31, (500_000,)).to(torch.int32)
    halves = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16)
    edges = torch.tensor([0.0, -0.0, 65504, 65519.99, 65520, 2.0**-24, 2.0**-25, 3 * 2.0**-26, 3.3e38])
    ties = halves[halves.isfinite()].float() * (1 + 2**-11)
    values = torch.cat([bits.view(torch.float32), halves.float(), edges, -edges, ties])
    results = [torch.zeros(len(values), dtype=dtype) for dtype in (torch.float16, torch.bfloat16)]
    convert(*(ctypes.c_void_p(t.data_ptr()) for t in (values, *results)), ctypes.c_int64(len(values)))
    for result in results:
        expected = values.to(result.dtype)
        assert torch.equal(result.isnan(), expected.isnan())
        assert torch.equal(result[~expected.isnan()], expected[~expected.isnan()])


@dtypes
@transposing
@pytest.mark.parametrize("rows", [1, 8, 16, 32, 64, 128])
def test_shared_memory_fits_the_smallest_device(library, rows: int, dtype, transposed: bool) -> None:
    # 99 KiB on sm_86, sm_89 and sm_120; 163 KiB on sm_80; 227 KiB on sm_90 and sm_100.
    for op, case in (
        ("masked_linear", simt.masked_case(1, rows, 8, 8, dtype, transposed)),
        ("edited_linear", simt.edited_case([rows], 8, 8, dtype, transposed)),
    ):
        simt.Runner(library)(op, *case)
        assert 10_000 < library.loaded.simt_shared_bytes() <= 99 * 1024


def test_sizes_beyond_int_are_refused(library) -> None:
    with pytest.raises(RuntimeError, match="failed in masked_linear"):
        library.call("masked_linear", *[None] * 6, 1, 1, 1 << 31, 1, 0, 0, None)
