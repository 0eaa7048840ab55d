"""The CUDA kernels on a GPU: what the tests on the CPU cannot show, and once more what they can."""

import pytest
import torch
from torch import Tensor

from cad_fast.ops import backends, edited_linear, masked_linear, pack_bits
from tests.cuda import simt
from tests.cuda.test_simt import EDITED, MASKED, dtypes, transposing
from tests.ops import exact
from tests.rounding import assert_right

pytestmark = pytest.mark.gpu

LARGE = [(64, 1, 1280, 320), (33, 7, 2560, 641), (8, 16, 1280, 1280), (4, 77, 320, 768), (3, 1024, 640, 2560)]
LARGE_EDITED = [([1] * 64, 1280, 320), ([4096, 77, 0, 16], 320, 1280), ([1024] * 3, 640, 2561)]


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
@pytest.mark.parametrize("shape", MASKED + LARGE, ids=str)
@pytest.mark.parametrize("with_factors", [False, True], ids=["removed", "factors"])
def test_masked_against_reference(shape: tuple[int, ...], dtype, transposed: bool, with_factors: bool) -> None:
    case = simt.masked_case(*shape, dtype, transposed)
    if with_factors:
        case[4] = torch.tensor([0.0, 1.0, -1.5, 0.3, 2.0])[torch.arange(shape[0]) % 5]
    check("masked_linear", case)


@dtypes
@transposing
@pytest.mark.parametrize("shape", EDITED + LARGE_EDITED, ids=str)
def test_edited_against_reference(shape: tuple, dtype, transposed: bool) -> None:
    check("edited_linear", simt.edited_case(*shape, dtype, transposed))


@dtypes
@transposing
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_removed_does_not_leak(dtype, transposed: bool, bad: float) -> None:
    for rows in (1, 8, 16, 64, 200):
        case = simt.masked_case(2, rows, 50, 80, dtype, transposed)
        mask = torch.rand(2, 50, 80) < 0.5
        mask[:, ::7, ::3] = True
        case[1][::7, ::3], case[2] = bad, pack_bits(mask)
        check("masked_linear", case)


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


@pytest.mark.skipif(backends.native.why_not() is not None, reason=str(backends.native.why_not()))
@transposing
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_agrees_with_the_native_kernels_to_the_last_bit(dtype, transposed: bool) -> None:
    for rows in (1, 7, 16, 33, 80):
        x, weight, words, *_ = simt.masked_case(3, rows, 70, 150, dtype, transposed)
        case = [x.round().clamp(-1, 1), weight.round().clamp(-1, 1), words, None, None, transposed]
        actual = masked_linear(*on_gpu("masked_linear", case), backend="cuda")
        assert torch.equal(actual.cpu(), masked_linear(*case, backend="native"))
        x, weight, *edit, _, _ = simt.edited_case([rows, 2, rows], 70, 150, dtype, transposed)
        case = [x.round().clamp(-1, 1), weight.round().clamp(-1, 1), *edit, None, transposed]
        actual = edited_linear(*on_gpu("edited_linear", case), backend="cuda")
        assert torch.equal(actual.cpu(), edited_linear(*case, backend="native"))


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
