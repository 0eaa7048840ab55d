"""The kernels that write out weights and gate channels, beside the vendor's products."""

import pytest
import torch

from cad_fast import ops
from tests.ops import exact
from tests.rounding import assert_right

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def on(device: torch.device, case: list) -> list:
    """The same arguments with their tensors there."""
    return [value.to(device) if isinstance(value, torch.Tensor) else value for value in case]


@HALVES
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 5, 17, 45), (2, 16, 136, 300), (5, 3, 9, 64)], ids=str)
@pytest.mark.parametrize("with_factors", [False, True], ids=["removed", "factors"])
def test_masked_linear(
    device: torch.device, shape: tuple[int, int, int, int], dtype: torch.dtype, transposed: bool, with_factors: bool
) -> None:
    variants, rows, n, k = shape
    x, weight = torch.randn(variants, rows, n if transposed else k).to(dtype), torch.randn(n, k).to(dtype)
    mask = torch.rand(variants, n, k) < 0.4
    mask[:, 0, 0], weight[0, 0] = True, float("inf")
    factors = torch.tensor([0.0, 1.0, -1.5, 0.25])[torch.arange(variants) % 4] if with_factors else None
    if with_factors:
        weight[0, 0] = 1
    bias = None if transposed else torch.randn(n).to(dtype)
    case = [x, weight, ops.pack_bits(mask, backend="reference"), bias, factors, transposed]
    assert_right(ops.masked_linear(*on(device, case), backend="vendor").cpu(), exact.masked_linear(*case))


@HALVES
def test_weights_are_written_in_parts(
    device: torch.device, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops.backends.vendor, "BUFFER_BYTES", 2 * 2 * 24 * 40)  # two weights at a time
    x, weight = torch.randn(5, 3, 40).to(dtype), torch.randn(24, 40).to(dtype)
    case = [x, weight, ops.pack_bits(torch.rand(5, 24, 40) < 0.4, backend="reference"), None, torch.randn(5), False]
    assert_right(ops.masked_linear(*on(device, case), backend="vendor").cpu(), exact.masked_linear(*case))


@HALVES
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_masked_conv2d(device: torch.device, dtype: torch.dtype, last: bool) -> None:
    x, weight = torch.randn(3, 2, 5, 7, 6).to(dtype), torch.randn(9, 5, 3, 3).to(dtype)
    words = ops.pack_bits(torch.rand(3, 9, 45) < 0.4, backend="reference")
    if last:
        x, weight = x.movedim(-3, -1).contiguous().movedim(-1, -3), weight.contiguous(memory_format=torch.channels_last)
    case = [x, weight, words, torch.randn(9).to(dtype), None, [1, 2], [1, 0], [1, 1], 1, None]
    assert_right(ops.masked_conv2d(*on(device, case), backend="vendor").cpu(), exact.masked_conv2d(*case))


@HALVES
@pytest.mark.parametrize("gates_count", [24, 6])
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_gated_linear(device: torch.device, dtype: torch.dtype, gates_count: int, transposed: bool) -> None:
    x, weight = torch.randn(3, 5, 17 if transposed else 24).to(dtype), torch.randn(17, 24).to(dtype)
    gates = torch.where(torch.rand(3, gates_count) < 0.3, 0, torch.randn(3, gates_count)).to(dtype)
    if not transposed:
        gates[:, 0], x[..., : 24 // gates_count] = 0, float("inf")  # what a gate of 0 meets may be anything
    case = [x, weight, gates, None if transposed else torch.randn(17).to(dtype), transposed]
    assert_right(ops.gated_linear(*on(device, case), backend="vendor").cpu(), exact.gated_linear(*case))


@HALVES
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_gated_conv2d(device: torch.device, dtype: torch.dtype, last: bool, transposed: bool) -> None:
    x, weight = torch.randn(3, 2, 10 if transposed else 8, 5, 6).to(dtype), torch.randn(10, 8, 3, 3).to(dtype)
    gates = torch.where(torch.rand(3, 10) < 0.3, 0, torch.randn(3, 10)).to(dtype)
    if last:
        x = x.movedim(-3, -1).contiguous().movedim(-1, -3)
    bias = None if transposed else torch.randn(10).to(dtype)
    case = [x, weight, gates, bias, [1, 1], [1, 1], [1, 1], 1, [5, 6] if transposed else None]
    assert_right(ops.gated_conv2d(*on(device, case), backend="vendor").cpu(), exact.gated_conv2d(*case))
