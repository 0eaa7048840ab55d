"""Runs the cases of the operators, and those of the Triton kernels alone, in Triton's interpreter.

It takes over the process it is in, so that each file has one of its own; short ones share one.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from cad_fast.ops.registry import OPS
from tests.kernels.interpreter import why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

TESTS = Path(__file__).parents[1]
IN_TRITON = {name for name, op in OPS.items() if "triton" in op.implementations}
FILES = [TESTS / "ops" / "cases" / f"test_{name}.py" for name in sorted(IN_TRITON)]
FILES += sorted((TESTS / "kernels" / "cases").glob("test_*.py"))
SHORT = ("bits", "seeded_mask", "interpreter", "vendor")
PROCESSES = [[file] for file in FILES if not file.stem.endswith(SHORT)]
PROCESSES += [[file for file in FILES if file.stem.endswith(SHORT)]]


@pytest.mark.parametrize("files", PROCESSES, ids=lambda files: "+".join(file.stem for file in files))
def test_cases(files: list[Path]) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "CAD_FAST_", "TRITON_"))}
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", *map(str, files)]
    result = subprocess.run(
        command, env=kept | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False, timeout=1200
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    summary = result.stdout.strip().splitlines()[-1]
    assert " passed" in summary and "skipped" not in summary, summary
