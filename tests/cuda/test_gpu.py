"""The CUDA kernels on a GPU: what the tests on the CPU cannot show. What is right: tests/ops/cases."""

import pytest
import torch
from torch import Tensor

from cad_fast.ops import backends, masked_linear
from tests.cuda import simt
from tests.cuda.test_simt import dtypes
from tests.ops import exact
from tests.ops.cases.test_masked_linear import transposing
from tests.rounding import assert_right

pytestmark = pytest.mark.gpu


def on_gpu(op: str, case: list, device: str = "cuda") -> list:
    """The arguments, those on the GPU that have to be."""
    host = (2, 3) if op == "edited_linear" else ()
    return [a.to(device) if isinstance(a, Tensor) and i not in host else a for i, a in enumerate(case)]


def check(op: str, case: list, device: str = "cuda") -> Tensor:
    """The kernel's result, which must be as near the float64 one as rounding allows."""
    actual = getattr(backends.cuda, op)(*on_gpu(op, case, device))
    assert actual.dtype == case[0].dtype
    assert_right(actual.cpu(), getattr(exact, op)(*case))
    return actual


@dtypes
@transposing
def test_the_same_every_time(dtype, transposed: bool) -> None:
    """A race shows as a result that changes."""
    for op, case in (
        ("masked_linear", simt.masked_case(40, 9, 640, 1280, dtype, transposed)),
        ("masked_linear", simt.masked_case(8, 200, 640, 1280, dtype, transposed)),
        ("edited_linear", simt.edited_case([300, 1, 77, 500], 640, 1280, dtype, transposed)),
    ):
        first = check(op, case)
        args = on_gpu(op, case)
        for _ in range(20):
            assert torch.equal(getattr(backends.cuda, op)(*args), first)


def test_the_current_stream_is_used() -> None:
    case = on_gpu("masked_linear", simt.masked_case(4, 9, 320, 640, torch.float32, False))
    expected = masked_linear(*case, backend="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = torch.zeros_like(case[0])
        torch.cuda._sleep(50_000_000)  # a kernel in any other stream would see the zeros
        late.copy_(case[0])
        actual = masked_linear(late, *case[1:], backend="cuda")
    stream.synchronize()
    assert torch.equal(actual, expected)


def test_a_graph_can_be_captured() -> None:
    case = on_gpu("masked_linear", simt.masked_case(4, 9, 320, 640, torch.bfloat16, False))
    expected = masked_linear(*case, backend="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        actual = masked_linear(*case, backend="cuda")
    actual.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(actual, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_device_of_the_tensors_is_used() -> None:
    before = torch.cuda.current_device()
    for device in ("cuda:1", "cuda:0", "cuda:1"):
        actual = check("masked_linear", simt.masked_case(4, 9, 320, 640, torch.float16, False), device)
        assert str(actual.device) == device and torch.cuda.current_device() == before
