"""Calls with an edit that is prepared: they do not wait for the GPU, and a CUDA graph captures and replays them."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from cad_fast import remembered
from cad_fast.ops import can_run, edited_conv2d, edited_linear
from tests.ops.cases.test_edited_linear import random_case

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")


def edited_case(sizes: list[int], n: int, k: int) -> list[Tensor]:
    """Rows and offsets stay on the CPU."""
    x, weight, rows, offsets, indices, factors = random_case(sizes, n, k, torch.bfloat16, False)
    return [x.to(CUDA), weight.to(CUDA), rows, offsets, indices.to(CUDA), factors.to(CUDA)]


def of_linear(backend: str) -> tuple[list[Tensor], Callable[..., Tensor]]:
    args = edited_case([1, 20, 0, 7], 100, 200)
    return args, lambda *args: edited_linear(*args, backend=backend)


def of_convolution(backend: str) -> tuple[list[Tensor], Callable[..., Tensor]]:
    _, _, *edit = edited_case([1, 2, 0, 3], 32, 16 * 9)
    x, weight = torch.randn(6, 16, 9, 9, device=CUDA).bfloat16(), torch.randn(32, 16, 3, 3, device=CUDA).bfloat16()
    return [x, weight, *edit], lambda *args: edited_conv2d(*args, padding=1, backend=backend)


@pytest.fixture(params=[(of_linear, "triton"), (of_linear, "cuda"), (of_convolution, "triton")], ids=str)
def prepared(request: pytest.FixtureRequest) -> tuple[list[Tensor], Callable[..., Tensor]]:
    """Arguments, and an operator that has been called with them."""
    make, backend = request.param
    args, call = make(backend)
    if make is of_linear and not can_run("edited_linear", backend, *args, None, False):
        pytest.skip(f"{backend} cannot run here")
    call(*args)
    torch.cuda.synchronize()
    return args, call


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Every wait for the GPU that torch knows of is an error."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def test_a_further_call_does_not_wait(prepared, no_waiting) -> None:
    args, call = prepared
    call(*args)
    with torch.inference_mode():
        call(*args)


def test_a_graph_replays_it(prepared) -> None:
    args, call = prepared
    x = args[0]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call(*args)
    for _ in range(3):
        x.normal_()
        remembered.forget()
        filler = [torch.full((1 << 20,), float("nan"), device=CUDA) for _ in range(8)]  # takes what was freed
        graph.replay()
        assert torch.equal(captured, call(*args))
        del filler


def test_a_graph_of_nothing_prepared_is_refused(prepared) -> None:
    args, call = prepared
    args = [*args[:4], args[4].clone(), args[5]]
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="cannot while a CUDA graph is captured"), torch.cuda.graph(graph):
        call(*args)


def test_another_stream_finds_it_whole(prepared) -> None:
    args, call = prepared
    expected = call(*args)
    args = [*args[:4], args[4].clone(), args[5].clone()]
    torch.cuda.synchronize()
    call(*args)
    other = torch.cuda.Stream()
    with torch.cuda.stream(other):
        result = call(*args)
        del args
    other.synchronize()
    assert torch.equal(result, expected)
