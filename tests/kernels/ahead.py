"""Compiles what the launchers of the Triton kernels would launch, for GPUs that are not there, and examines it."""

import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit

from cad_fast.kernels import configs

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SHARED_LIMITS = {"sm_80": 101376, "sm_90": 232448, "sm_100": 232448, "gfx942": 65536}
"""Bytes of shared memory a program may have. The kernels for sm_80 run on sm_86, sm_89, sm_120 too: these have less."""
MATRIX_INSTRUCTIONS = {"sm_80": r"\bHMMA\b", "sm_90": r"\bHGMMA\b", "sm_100": r"\bUTC\w*MMA\b", "gfx942": r"\bv_mfma_"}
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def compiled(name: str, launch: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The kernels that `launch` would launch on this architecture, compiled with the very arguments and not run."""
    target, kernels = TARGETS[name], []
    run = jit.JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernels.append(run(self, *args, grid=grid, warmup=True, **options))

    pretended = SimpleNamespace(
        get_current_device=lambda: name, get_current_stream=lambda device: 0, get_current_target=lambda: target
    )
    with monkeypatch.context() as patch:
        patch.setattr(driver, "_active", pretended)
        patch.setattr(jit.JITFunction, "run", compile_only)
        patch.setattr(configs, "architecture", lambda device: name)
        launch()
    return kernels


def disassembly(name: str, kernel: Any) -> str:
    """The machine code, as text."""
    return kernel.asm["amdgcn"] if name == "gfx942" else _cuobjdump("-sass", kernel)


def assert_fits(name: str, kernel: Any) -> None:
    """Shared memory within the limit, and registers enough: no stack and no spills to memory.

    AMD's scalar registers may be spilled into vector registers, which costs no memory.
    """
    assert kernel.metadata.shared <= SHARED_LIMITS[name], f"{kernel.metadata.shared} bytes of shared memory"
    if name == "gfx942":
        text = kernel.asm["amdgcn"]
        usage = re.findall(r"\.(private_segment_fixed_size|vgpr_spill_count): +(\d+)", text)
        assert len(usage) == 2 and all(count == "0" for _, count in usage), usage
    else:
        text = _cuobjdump("-res-usage", kernel)
        usage = re.search(r"STACK:(\d+).* LOCAL:(\d+)", text)
        assert usage and usage.groups() == ("0", "0"), text


def assert_uses_matrix_instructions(name: str, kernel: Any) -> None:
    """The products run on tensor cores, or what AMD calls them."""
    assert re.search(MATRIX_INSTRUCTIONS[name], disassembly(name, kernel)), f"none of {MATRIX_INSTRUCTIONS[name]}"


def _cuobjdump(option: str, kernel: Any) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        return subprocess.run([CUOBJDUMP, option, file.name], check=True, capture_output=True, text=True).stdout
