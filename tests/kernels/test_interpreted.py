"""Runs the cases of tests/kernels/cases in Triton's interpreter, each file in a process, which it takes over."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from tests.kernels.interpreter import why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

CASES = Path(__file__).parent / "cases"
FILES = sorted(path.name for path in CASES.glob("test_*.py"))


@pytest.mark.parametrize("file", FILES)
def test_cases(file: str) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "CAD_FAST_", "TRITON_"))}
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", str(CASES / file)]
    result = subprocess.run(
        command, env=kept | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False, timeout=1200
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    summary = result.stdout.strip().splitlines()[-1]
    assert " passed" in summary and "skipped" not in summary, summary


def test_there_are_cases_for_every_kernel() -> None:
    kernels = {path.stem for path in (CASES.parents[2] / "kernels").glob("*.py")}
    kernels -= {"channels_last", "configs", "entries", "patches", "tiles"}
    kernels -= {"ablated_weights", "gate_channels"}  # those of the vendor's way
    assert {f"test_{name}.py" for name in (*kernels, "vendor")} <= set(FILES)
