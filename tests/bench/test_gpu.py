"""bench.gpu's measuring, on the CPU with layers of no size."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from bench import gpu
from bench.roofline import Layer, conv

CPU = torch.device("cpu")


@pytest.mark.parametrize("op", list(gpu.OPS))
def test_a_line_has_every_contender(op: str) -> None:
    layer = conv("model", "layer", 8, 4) if op.endswith("conv2d") else Layer("model", "layer", rows=3, n=40, k=70)
    line = gpu.measure(op, layer, "float32", CPU, seconds=0)
    assert line["seconds"].keys() >= {gpu.DENSE, "cad_fast native", gpu.OPS[op][2]}
    assert all(value > 0 for value in line["seconds"].values())
    assert line["of_dense"]["cad_fast native"] == pytest.approx(
        line["seconds"]["cad_fast native"] / line["seconds"][gpu.DENSE]
    )
    assert line["floor_seconds"] is None
    assert "| model | layer |" in gpu.table([line])


def test_a_wrong_result_gets_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    right = gpu.ops.masked_linear
    monkeypatch.setattr(gpu.ops, "masked_linear", lambda *args, **kwargs: right(*args, **kwargs) * 1.01)
    with pytest.raises(AssertionError, match="no figure"):
        gpu.measure("masked_linear", Layer("model", "layer", rows=3, n=40, k=70), "float32", CPU, seconds=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_it_says_so(tmp_path) -> None:
    command = [sys.executable, "-m", "bench.gpu", "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "no CUDA device" in done.stderr
    assert not (tmp_path / "out").exists()
