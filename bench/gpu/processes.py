"""Processes of a run, and what happens to them: they crash, hang, run out of time, and go on behind the bad case."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from . import findings

MOST_RESTARTS = 8
LOST = 3
"""Exit code of a process to which the device answers no more, as after an illegal access."""


class Process:
    """A process in a group of its own, which is ended with all that it started."""

    def __init__(self, command: Sequence[str], log: IO[str], **environment: str) -> None:
        self.popen = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True, env={**os.environ, **environment}
        )

    def code(self) -> int | None:
        """The exit code; None while it runs."""
        return self.popen.poll()

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()


class Watched:
    """A section, or a group of its checks: restarted behind the case at which it crashed or hung."""

    def __init__(self, name: str, command: Sequence[str], facts: dict[str, Any], folder: Path, log: IO[str]) -> None:
        self.name, self.command, self.facts, self.folder, self.log = name, list(command), facts, folder, log
        self.place = findings.Place(folder, name)
        self.signal = findings.Place(folder, f"{name}.start")
        self.restarts, self.started = 0, 0.0
        self.process: Process | None = None
        self.done = False

    def prepare(self) -> None:
        """Let the process import what it needs, and wait for `start`."""
        self.signal.path.unlink(missing_ok=True)
        self.process = Process([*self.command, "--wait", str(self.signal.path)], self.log)

    def start(self, end: float, patience: float, skip: int = 0) -> None:
        """Begin with case number `skip`, until `end` at most; `patience`: seconds for a case before it counts as hung.

        Times are those of time.monotonic().
        """
        self.end_at, self.patience = end, patience
        self.started = time.monotonic()
        seconds = max(1.0, end - self.started)
        if self.process is not None and self.process.code() is None:
            self.signal.begin(0, f"{seconds:.1f}")
            return
        more = ["--seconds", f"{seconds:.1f}", "--skip", str(skip)]
        self.process = Process([*self.command, *more], self.log)

    def poll(self) -> None:
        """Look what has become of the process, and go on behind the case that ended it."""
        if self.done or self.process is None:
            return
        code = self.process.code()
        late = time.monotonic() > self.end_at
        # A process that has begun no case yet is given as long to import and to prepare.
        age = min(time.monotonic() - self.started, self.place.age() or 1e9)
        hung = code is None and age > self.patience
        if code is None and not hung and not late:
            return
        if code == 0:
            self.done = True
            return
        self.process.end()
        reached = self.place.read()
        if late and code is None:
            self._note("out of time", reached, cut=True)
            self.done = True
            return
        why = f"hung: no end after {self.patience:.0f} s" if hung else f"crashed: {_meaning(code)}"
        before = reached is not None and self.process_began_a_case()
        if code != LOST:  # of which the process itself has said more
            self._note(why, reached if before else None)
        self.restarts += 1
        if not before or self.restarts > MOST_RESTARTS or self.end_at - time.monotonic() < 1:
            self.done = True
            return
        assert reached is not None
        self.start(self.end_at, self.patience, reached[0] + 1)

    def process_began_a_case(self) -> bool:
        """Whether the present process, not one before it, reached the case that is noted."""
        age = self.place.age()
        return age is not None and age <= time.monotonic() - self.started + 0.5

    def _note(self, why: str, reached: tuple[int, str] | None, **more: Any) -> None:
        case = "before the first case" if reached is None else reached[1]
        findings.append(self.folder, **self.facts, case=case, error=why, **more)

    def end(self) -> None:
        if self.process is not None and self.process.code() is None:
            self.process.end()


def _meaning(code: int | None) -> str:
    if code is not None and code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"exit code {code}"


def module(*arguments: str) -> list[str]:
    """The command of a process of this package."""
    return [sys.executable, "-u", "-m", "bench.gpu", *arguments]
