"""What every process of a run does: go through its cases, write what each finds, and stop in time."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from cad_fast.ops.dispatch import BACKENDS
from cad_fast.ops.registry import OPS

from . import findings
from .processes import LOST

Case = tuple[str, Callable[[], object]]
"""A name, and what is done; it writes what it finds."""

MODULES = {
    "env": "environment",
    "correct": "correct",
    "linear": "linear",
    "conv": "conv",
    "model": "model",
    "attribution": "attribution",
    "compile": "compiled",
}
"""Each section, and the module whose `cases` it runs."""

NOT_ON_GPUS = ("native", "reference")
MARGIN = 1.0  # of the time given, so that nothing has to be ended by force


class CaseError(Exception):
    """What went wrong in a case, with what else is to be written of it."""

    def __init__(self, error: Exception, **facts: Any) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.facts = facts


class Worker:
    """The surroundings of a case: the device, the time left, and where findings go."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.section, self.folder = arguments.worker, Path(arguments.output)
        self.dry, self.group, self.plant = arguments.dry_run, arguments.group, arguments.plant
        self.skip = arguments.skip
        self.end = time.monotonic() + arguments.seconds - MARGIN
        self.part, self.parts = (int(number) for number in (arguments.warm or "0/0").split("/"))
        self.device = torch.device("cpu" if self.dry else "cuda")
        self.place = findings.Place(self.folder, place_name(self.section, self.group))

    @property
    def warming(self) -> bool:
        """Whether kernels are compiled, and nothing is measured or written."""
        return self.parts > 0

    def left(self) -> float:
        """Seconds until the end."""
        return self.end - time.monotonic()

    def put(self, **finding: Any) -> None:
        """Write a finding."""
        if not self.warming:
            findings.append(self.folder, section=self.section, **finding)

    def synchronize(self) -> None:
        if not self.dry:
            torch.cuda.synchronize()

    def dtype(self) -> torch.dtype:
        """What models and layers are measured in."""
        return torch.float32 if self.dry else torch.bfloat16

    def backends(self, op: str) -> list[str]:
        """The backends of an operator on this device, the reference excepted; in a dry run native and reference."""
        known = [name for name in BACKENDS if name in OPS[op].implementations]
        return [name for name in known if (name in NOT_ON_GPUS) == self.dry]

    def run(self, cases: Iterable[Case]) -> int:
        """Go through the cases; the exit code."""
        for number, (name, do) in enumerate(cases):
            if number < self.skip or (self.warming and number % self.parts != self.part):
                continue
            if self.left() < 0:
                self.put(case=name, error="out of time", cut=True)
                break
            if not self.warming:
                self.place.begin(number, name)
            try:
                do()
            except Exception as error:
                facts = error.facts if isinstance(error, CaseError) else {}
                self.failed(name, error, **facts)
                if not self.alive():
                    return LOST
        return 0

    def failed(self, case: str, error: Exception, **more: Any) -> None:
        """Write that a case ended in an error."""
        traceback.print_exc()
        said = str(error) if isinstance(error, CaseError) else f"{type(error).__name__}: {error}"
        self.put(case=case, error=said[:1500], **more)

    def alive(self) -> bool:
        """Whether the device still answers: after an illegal access it does not, in this process."""
        try:
            self.synchronize()
        except Exception:
            traceback.print_exc()
            return False
        return True


def place_name(section: str, group: str) -> str:
    """The file that says at which case a process is."""
    return "-".join([section, *group.split(",")]).rstrip("-")


def work(arguments: argparse.Namespace) -> int:
    """Run the cases of a section in this process; the exit code."""
    if arguments.dry_run:
        torch.set_num_threads(1)
    try:
        module = importlib.import_module(f"bench.gpu.{MODULES[arguments.worker]}")
    except ImportError as error:
        Worker(arguments).failed("import", error)
        return 0
    if arguments.wait is not None:
        arguments.seconds = wait_for(arguments.wait)
    worker = Worker(arguments)
    try:
        code = worker.run(module.cases(worker))
    except Exception as error:  # of what the cases have in common
        worker.failed("before a case", error)
        return 0
    if code == LOST:
        sys.stderr.flush()
        os._exit(code)  # what torch would tidy up at a proper end is on the device that is lost
    return code


def wait_for(path: Path) -> float:
    """Sleep until the run has written the file; the seconds that it gives. Nothing has used the device until then."""
    parent = os.getppid()
    while not path.exists():
        if os.getppid() != parent:
            sys.exit("the run that started this process is gone")
        time.sleep(0.02)
    return float(path.read_text(encoding="utf-8").splitlines()[1])


def planted(kind: str, worker: Worker) -> None:
    """Do what a broken kernel does to its process."""
    if kind == "crash":
        os.abort()
    if kind == "hang":
        signal.pause()
    if kind == "lost":
        worker.alive = lambda: False
        raise RuntimeError("CUDA error: an illegal access, planted")
