"""Runs the cases of tests/kernels/cases in Triton's interpreter, each file in a process, which it takes over."""

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

triton = pytest.importorskip("triton")


def why_not() -> str | None:
    """Why Triton's interpreter cannot run here; None if it can."""
    found, numpy_found = (tuple(map(int, m.__version__.split(".")[:2])) for m in (triton, numpy))
    if found < (3, 7) and numpy_found >= (2, 4):
        return f"the interpreter of triton {triton.__version__} needs numpy below 2.4, this is {numpy.__version__}"
    return None


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
    assert {f"test_{name}.py" for name in kernels - {"configs", "entries", "patches", "tiles"}} <= set(FILES)
