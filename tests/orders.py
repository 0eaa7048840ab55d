"""Runs the tests of the ops with torch summing in several orders, as it does on other CPUs. Run by `make test-orders`.

What is right does not depend on the CPU: every setting must pass. Arguments are passed on to pytest.
"""

import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
SETTINGS = [
    {},
    {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"},
    {"MKL_CBWR": "COMPATIBLE"},
    {"MKL_CBWR": "AVX2"},
    {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    {"ATEN_CPU_CAPABILITY": "default"},
    {"ATEN_CPU_CAPABILITY": "avx2"},
    {"ATEN_CPU_CAPABILITY": "avx512"},
    {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
]
"""What is set in the environment: torch's threads, and the instructions of MKL, of oneDNN and of torch's own loops."""

# Tests of fresh processes and of schemas make no sums, nor does torch in the CUDA kernels' shim.
TESTS = ["tests/ops", "tests/test_rounding.py", "-k", "not opcheck and not process and not variable and not shim"]


def why_not(setting: dict[str, str]) -> str | None:
    """Why a setting cannot be tried on this CPU; None if it can. Torch itself does not ask."""
    wanted, has = setting.get("ATEN_CPU_CAPABILITY", ""), torch.backends.cpu.get_cpu_capability()
    levels = ["DEFAULT", "AVX2", "AVX512"]
    if wanted and has not in levels:
        return f"torch's loops are for {has} here"
    if wanted and levels.index(wanted.upper()) > levels.index(has):
        return f"torch uses {has} at most here"
    return None


def main() -> None:
    """Run the tests under each setting; the exit status is 1 if any failed."""
    failed = False
    for setting in SETTINGS:
        name = " ".join(f"{key}={value}" for key, value in setting.items()) or "nothing set"
        reason = why_not(setting)
        if reason is not None:
            print(f"{name}: left out, {reason}", flush=True)
            continue
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow and not gpu"]
        environment = os.environ | ONE_THREAD | setting
        done = subprocess.run(
            [*command, *TESTS, *sys.argv[1:]], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        lines = done.stdout.strip().splitlines() or [done.stderr]
        print(f"{name}: {lines[-1]}", flush=True)
        if done.returncode:
            failed = True
            print("\n".join(line for line in lines if line.startswith(("FAILED", "ERROR", "E  "))), flush=True)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
