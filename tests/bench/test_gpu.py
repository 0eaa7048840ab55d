"""bench.gpu, dry: the code that runs on a GPU, on the CPU with tiny sizes; and what it says of planted faults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.gpu import correct, findings, report
from bench.gpu.figures import Bar, at_most, faster_than
from bench.gpu.judging import judge
from bench.gpu.run import SECTIONS
from cad_fast.ops.registry import OPS
from tests.ops import exact


def gpu_check(folder: Path, *arguments: str, code: int = 0) -> tuple[list[dict], str]:
    """Run it dry; the findings and the report."""
    command = [sys.executable, "-m", "bench.gpu", "--output", str(folder), "--dry-run", "--budget", "240", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == code, done.stdout + done.stderr + (folder / "log.txt").read_text()[-3000:]
    return findings.read(folder), (folder / "gpu.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("section", ["env", "linear", "conv", "model", "attribution", "compile"])
def test_a_section_of_figures(tmp_path: Path, section: str) -> None:
    lines, page = gpu_check(tmp_path, "--sections", section)
    assert lines and not [line for line in lines if line.get("error")]
    for line in lines:
        assert line["section"] == section and all(value > 0 for value in line.get("us", {}).values())
    if section in ("linear", "conv"):
        measured = {line["op"] for line in lines}
        assert measured == {op for op in OPS if ("conv" in op) == (section == "conv") and op in correct.PRODUCTS}
        assert all({"ours", "dense", "native", "reference", "floor"} <= line["us"].keys() for line in lines)
        assert "| case | ours, us | chosen | of dense |" in page
    if section == "model":
        assert "NOT" not in page and sum("the change moves the picture" in str(line["notes"]) for line in lines) == 2
    if section == "compile":
        assert all("0 more when edits or masks changed" in line["notes"]["recompilations"] for line in lines)


@pytest.mark.slow
def test_the_tests_that_fail_are_named(tmp_path: Path) -> None:
    failing = tmp_path / "test_planted.py"
    failing.write_text("def test_right(): pass\ndef test_planted(): assert 1 + 1 == 3, 'planted'\n")
    _, page = gpu_check(tmp_path / "out", "--sections", "tests", "--tests", str(failing), code=1)
    assert "1 failed, 1 passed, of 2 collected; exit code 1" in page
    assert "test_planted.py::test_planted (call)" in page and "AssertionError: planted" in page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plant", "said"),
    [
        ("crash", "crashed: ended by SIGABRT"),
        ("hang", "hung: no end"),
        ("lost", "CUDA error: an illegal access"),
        ("wrong", "WRONG: element"),
    ],
)
def test_a_planted_fault_is_one_line_and_the_others_go_on(tmp_path: Path, plant: str, said: str) -> None:
    only = ["--only", "masked_linear_scores,native,float32"]
    lines, page = gpu_check(tmp_path, "--sections", "correct", "--plant", plant, *only, code=1)
    bad = [line for line in lines if line.get("error")]
    assert len(bad) == 1 and said in bad[0]["error"] and said in page
    assert [line["right"] for line in lines if "right" in line].count(True) == 3


@pytest.mark.slow
@pytest.mark.parametrize("only", ["bits,native", "products,auto,float32", "conv2d,native,float32"])
def test_checks(tmp_path: Path, only: str) -> None:
    lines, _ = gpu_check(tmp_path, "--sections", "correct", "--only", only)
    assert len(lines) > 15 and all(line["right"] for line in lines)


def test_a_run_that_is_cut_ends_in_time_and_says_what_is_missing(tmp_path: Path) -> None:
    begin = time.monotonic()
    lines, page = gpu_check(tmp_path, "--sections", "linear", "conv", "--budget", "8")
    assert time.monotonic() - begin < 60
    assert {line["section"] for line in lines if line.get("cut")} >= {"conv"} and "there was no time for" in page


def test_every_operator_has_cases() -> None:
    assert correct.PRODUCTS.keys() | correct.BITS.keys() == OPS.keys()
    on_gpus = correct.groups(dry=False)
    for op in correct.PRODUCTS:
        for backend in OPS[op].implementations.keys() - {"native", "reference"}:
            assert {f"{op},{backend},{dtype}" for dtype in correct.DTYPES} <= set(on_gpus)


def test_an_operator_without_cases_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPS, "new_linear", OPS["masked_linear"])
    with pytest.raises(RuntimeError, match="new_linear"):
        correct.groups(dry=False)


def test_verdicts() -> None:
    x, weight, gates = torch.randn(2, 3, 8), torch.randn(5, 8), torch.ones(2, 8)
    right = exact.gated_linear(x, weight, gates)
    assert judge(right.value.float(), right).right
    assert "times what rounding explains" in judge(right.value.float() * 1.01, right).message
    assert "not finite" in judge(right.value.float() / 0, right).message
    assert "shape" in judge(right.value.float()[0], right).message
    bits = torch.tensor([1, 2], dtype=torch.int32)
    assert judge(bits, bits).right and not judge(bits + 1, bits).right and not judge(bits.long(), bits).right


def test_bars() -> None:
    us = {"ours": 3.0, "dense": 2.0, "vmap": 9.0}
    assert at_most(1.5, "dense").met(us) and not at_most(1.4, "dense").met(us)
    assert faster_than("vmap", 3.0).met(us) and not faster_than("vmap", 3.1).met(us)
    assert Bar("", "ours", "floor", 1.0).met(us) is None


def test_what_there_was_no_time_for_is_not_wrong() -> None:
    late = {"section": "linear", "case": "all", "error": "out of time: not begun", "cut": True}
    assert not report.is_bad([late], []) and "no time for" in report.page([late], [], False)
    assert report.is_bad([{**late, "cut": False}], []) and report.is_bad([], [{"outcome": "failed"}])


def test_half_a_line_is_left_out(tmp_path: Path) -> None:
    findings.append(tmp_path, section="env", facts={})
    with (tmp_path / findings.NAME).open("a") as file:
        file.write(json.dumps({"section": "linear"})[:9])
    assert [line["section"] for line in findings.read(tmp_path)] == ["env"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.gpu", "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "no CUDA device" in done.stderr
    assert not (tmp_path / "out").exists()


def test_all_sections_are_known() -> None:
    assert set(SECTIONS) >= {"env", "correct", "tests", "linear", "conv", "model", "attribution"}
