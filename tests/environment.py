"""Prints what the tests run on: the CPU and what is used of it, and versions. Run by `.ci/run`."""

import importlib
import os
import platform
from pathlib import Path

import torch

from cad_fast import backend_report

MODULES = ("torch", "numpy", "triton", "diffusers", "transformers")


def cpu_model() -> str:
    """The name that Linux knows, elsewhere what Python does."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def version_of(name: str) -> str:
    """A module's version, or why it cannot be imported."""
    try:
        return importlib.import_module(name).__version__
    except ImportError as error:
        return f"cannot be imported: {error}"


def main() -> None:
    """Print one line for each thing."""
    report = backend_report()
    cpu, threads = report["cpu"], report["threads"]
    print(f"CPU: {cpu_model()}, {os.cpu_count()} cores")
    of_torch = torch.backends.cpu.get_cpu_capability()
    print(f"capability in use: {cpu['in_use'] or report['native']['why_not']} (torch's own: {of_torch})")
    for name, reason in (cpu["capabilities"] or {}).items():
        print(f"capability {name}: {reason or 'runs here'}")
    print(f"threads: {threads['torch']}, native loops by {threads['why_serial'] or 'torch'}")
    print(f"python: {platform.python_version()}")
    for name in MODULES:
        print(f"{name}: {version_of(name)}")


if __name__ == "__main__":
    main()
