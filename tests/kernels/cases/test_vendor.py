"""Weights that are written out beside the vendor's products, in parts. What is right: tests/ops/cases."""

import pytest
import torch

from cad_fast import ops
from tests.ops import exact
from tests.rounding import assert_right


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_are_written_in_parts(
    device: torch.device, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops.backends.vendor, "BUFFER_BYTES", 2 * 2 * 24 * 40)  # two weights at a time
    x, weight = torch.randn(5, 3, 40).to(dtype), torch.randn(24, 40).to(dtype)
    words = ops.pack_bits(torch.rand(5, 24, 40) < 0.4, backend="reference")
    case = [x, weight, words, None, torch.randn(5)]
    on_device = [None if value is None else value.to(device) for value in case]
    assert_right(ops.masked_linear(*on_device, backend="vendor").cpu(), exact.masked_linear(*case))
