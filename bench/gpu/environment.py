"""What the figures were taken on: device, driver, versions, and what the device does at its best here."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

import cad_fast

from . import clock
from .worker import Worker

PACKAGES = ("torch", "triton", "numpy", "diffusers", "transformers", "peft", "pytest", "pytest-xdist")
DENSE_SIZE, COPIED = 8192, 2**29


def cases(worker: Worker) -> Iterator[tuple[str, Callable[[], None]]]:
    yield "versions", lambda: worker.put(facts=versions(worker))
    yield "device", lambda: worker.put(facts=speeds(worker))


def versions(worker: Worker) -> dict[str, Any]:
    report = cad_fast.backend_report()
    facts: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "cad_fast": report["version"],
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }
    for package in PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "not installed"
    facts |= {f"{name} kernels": report[name]["why_not"] or "there" for name in ("cuda", "triton", "native")}
    if worker.dry:
        return facts | {"device": "none: a dry run, whose figures mean nothing"}
    return facts | {"driver": _driver(), "CUDA of torch": torch.version.cuda}


def _driver() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown: there is no nvidia-smi"
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout.strip() or done.stderr.strip()[:200]


def speeds(worker: Worker) -> dict[str, Any]:
    """Dense TFLOP/s and copied TB/s, measured."""
    facts: dict[str, Any] = {}
    size, copied = (64, 2**10) if worker.dry else (DENSE_SIZE, COPIED)
    if not worker.dry:
        properties = torch.cuda.get_device_properties(worker.device)
        facts |= {
            "device": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "L2, MB": round(properties.L2_cache_size / 1e6, 1),
            "memory, GB": round(properties.total_memory / 1e9, 1),
        }
    a, b = (torch.randn(size, size, device=worker.device, dtype=worker.dtype()) for _ in range(2))
    us = clock.gpu_time(worker, [lambda: a @ b], 0.4).us
    facts[f"dense {str(worker.dtype()).removeprefix('torch.')}, TFLOP/s"] = round(2 * size**3 / us / 1e6, 1)
    source = torch.zeros(copied, device=worker.device)
    target = torch.empty_like(source)
    us = clock.gpu_time(worker, [lambda: target.copy_(source)], 0.2).us
    facts["copy, TB/s read and written"] = round(2 * source.nbytes / us / 1e6, 3)
    return facts
