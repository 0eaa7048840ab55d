"""A job in a process of its own, watched while it writes, and killed at a chosen moment."""

from __future__ import annotations

import os
import select
import signal
import sqlite3
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
# The event by which a job says that what it needs is loaded.
LOADED = "tests.soak.loaded"
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod")


@dataclass(frozen=True)
class Kill:
    """When a job is killed.

    Attributes:
        mode: "early", so many seconds after its start; "time", so many after its model was loaded; "at", by itself as
            it is about to make a change of the disk; "in", so many seconds after it began that change.
        seconds: see ``mode``.
        change: which kind of change.
        number: the how manieth of its kind, from 1 on.
    """

    mode: str
    seconds: float = 0.0
    change: str = ""
    number: int = 0

    def begins(self, line: str, number: int) -> bool:
        """Whether its seconds begin with this line of the job, the how manieth of its kind."""
        return (
            line == "loaded"
            if self.mode == "time"
            else self.mode == "in" and (line, number) == (self.change, self.number)
        )


@dataclass
class Run:
    """What became of a run.

    Attributes:
        code: its exit code; None if it was killed.
        changes: how many changes of the disk of each kind it made after its model was loaded.
        loaded: seconds until then.
        seconds: seconds from then to its end.
        last: the change that it began last.
    """

    code: int | None = None
    changes: Counter[str] = field(default_factory=Counter)
    loaded: float = 0.0
    seconds: float = 0.0
    last: str = ""


def run(job: Callable[[], int], folder: Path, log: Path, kill: Kill | None = None) -> Run:
    """Run ``job`` in a fork of this process, which must have no other thread; kill it if it gets so far."""
    reading, writing = os.pipe()
    started = time.monotonic()
    process = os.fork()
    if not process:
        os.close(reading)
        _be_child(job, folder, log, writing, kill)
    os.close(writing)
    ended, clock = Run(), _Clock(process)
    if kill is not None and kill.mode == "early":
        clock.kill_at(started + kill.seconds)
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        for line in clock.lines(pipe):
            if line == "loaded":
                ended.loaded = time.monotonic() - started
            else:
                ended.changes[line] += 1
                ended.last = line
            if kill is not None and kill.begins(line, ended.changes[line]):
                clock.kill_at(time.monotonic() + kill.seconds)
    _, status = os.waitpid(process, 0)
    code = os.waitstatus_to_exitcode(status)
    ended.code = None if code == -signal.SIGKILL else code
    ended.seconds = time.monotonic() - started - ended.loaded
    return ended


class _Clock:
    """Reads what a process writes until it ends, and kills it when its time has come."""

    def __init__(self, process: int) -> None:
        self.process = process
        self._at: float | None = None

    def kill_at(self, moment: float) -> None:
        """Kill the process at this moment, of ``time.monotonic``."""
        self._at = moment

    def lines(self, pipe: Any) -> Iterator[str]:
        """The lines that it writes."""
        rest = b""
        while True:
            left = None if self._at is None else max(0.0, self._at - time.monotonic())
            if left == 0.0:
                os.kill(self.process, signal.SIGKILL)
                self._at = None
            elif select.select([pipe], [], [], left)[0]:
                data = pipe.read(65536)
                if not data:
                    return
                *whole, rest = (rest + data).split(b"\n")
                yield from (line.decode() for line in whole)


def _be_child(job: Callable[[], int], folder: Path, log: Path, pipe: int, kill: Kill | None) -> None:
    """Do the job and end the process. Nothing of the process that forked it is cleaned up here."""
    code = 70
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number in (1, 2):
            os.dup2(out, number)
        _watch(folder, pipe, kill)
        code = job()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _watch(folder: Path, pipe: int, kill: Kill | None) -> None:
    """Tell of every change that this process makes in ``folder``, just before it is made."""
    from cad_fast import loading
    from cad_fast.attribution.store import RunState

    counts: Counter[str] = Counter()
    loaded = False

    def tell(line: str) -> None:
        counts[line] += 1
        if kill is not None and kill.mode == "at" and (line, counts[line]) == (kill.change, kill.number):
            os.kill(os.getpid(), signal.SIGKILL)
        os.write(pipe, f"{line}\n".encode())

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal loaded
        if event == LOADED and not loaded:
            loaded = True
            os.write(pipe, b"loaded\n")
        if not loaded or not (event in _CHANGES or (event == "open" and _writes(arguments))):
            return
        path = os.fsdecode(arguments[1 if event == "os.rename" else 0])
        if path.startswith(str(folder)):
            tell(f"{event} {'*.part' if path.endswith('.part') else os.path.basename(path)}")

    def connected(*arguments: Any, connect: Callable[..., Any] = sqlite3.connect, **options: Any) -> Any:
        database = connect(*arguments, **options)
        database.set_trace_callback(lambda statement: tell(f"sqlite {statement.split()[0]}") if loaded else None)
        return database

    def load(*arguments: Any, before: Callable[..., Any] = loading.load_pipeline, **options: Any) -> Any:
        pipeline = before(*arguments, **options)
        sys.audit(LOADED)
        return pipeline

    sys.addaudithook(heard)
    sqlite3.connect = connected
    loading.load_pipeline = load
    # After every pass, not every minute: the runs here last seconds.
    RunState.__init__.__kwdefaults__["interval"] = 0.0  # type: ignore[index]


def _writes(arguments: tuple[Any, ...]) -> bool:
    path, _, flags = arguments
    return isinstance(path, str | bytes | os.PathLike) and bool((flags or 0) & _WRITING)
