"""The server under test: ``cad-fast serve`` as a process of its own, its edits on disk, and what it holds."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cad_fast import Edit
from cad_fast.files import read_json

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a-token-of-some-length"
LIMITS = {"max_n": 8, "max_queue": 40, "deadline": 60, "receive_timeout": 3, "drain": 30, "keep_bytes": 2**20}
START_SECONDS = 300
_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING) [\w.]+: |  \| ")
# Before it serves libraries say what is not installed, and how far loading is. Then it says where it serves.
_SERVING = re.compile(r"serving zoo:emoji at http://127\.0\.0\.1:(\d+)")


class ServedProcess:
    """``cad-fast serve`` of the embedded model.

    Args:
        folder: where its edits, its log and its temporary files lie.
        edits: what it serves, each saved in a folder of its name.
    """

    def __init__(self, folder: Path, edits: list[Edit]) -> None:
        self.edits, self.log, self.out = folder / "edits", folder / "log", folder / "out"
        self.temporary, self._counts = folder / "temporary", folder / "counts.json"
        shutil.rmtree(folder, ignore_errors=True)
        self.temporary.mkdir(parents=True)
        for edit in edits:
            edit.save_pretrained(self.edits / edit.name)
        self.port = 0
        self._at_start: set[Path] = set()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it takes requests."""
        options = [f"--{name.replace('_', '-')}={value}" for name, value in LIMITS.items()]
        command = [sys.executable, "-m", "tests.soak.counted_server", "serve", "zoo:emoji", "--json"]
        command += ["--edit-dir", str(self.edits), "--steps=1", "--max-batch-size=8", "--port=0", *options]
        environment = {
            **os.environ,
            "CAD_FAST_ADMIN_TOKEN": TOKEN,
            "SOAK_COUNTS": str(self._counts),
            "TMPDIR": str(self.temporary),
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        }
        with self.log.open("wb") as log, self.out.open("wb") as out:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=log)
        until = time.monotonic() + START_SECONDS
        while not (match := _SERVING.search(self.log.read_text())):
            self._require_running(until)
        self.port = int(match[1])
        while "Application startup complete" not in self.log.read_text():
            self._require_running(until)
        self._at_start = set(self.temporary.rglob("*"))  # of libraries

    def _require_running(self, until: float) -> None:
        assert self.process is not None
        if self.process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"the server did not start: {self.log.read_text()[-2000:]}")
        time.sleep(0.1)

    def held(self) -> dict[str, int]:
        """KiB of memory and open files of the process, and what it counts itself: threads, objects of some classes."""
        assert self.process is not None
        self._counts.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        until = time.monotonic() + 60
        while not self._counts.exists():
            self._require_running(until)
        proc = Path(f"/proc/{self.process.pid}")
        lines = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        return {
            "memory_kib": int(lines["VmRSS"].split()[0]),
            "files": len(list((proc / "fd").iterdir())),
            **read_json(self._counts),
        }

    def end(self) -> int | None:
        """Wait for its end; returns the exit code, or None if it had to be killed."""
        assert self.process is not None
        try:
            return self.process.wait(LIMITS["drain"] + 30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None

    def faults(self) -> list[str]:
        """What is wrong with what it said and left: tracebacks, errors, lines of no record, files."""
        faults = []
        text = self.log.read_text(errors="replace")
        for line in text[_SERVING.search(text).start() :].splitlines()[1:]:  # type: ignore[union-attr]  # it started
            if "Traceback" in line or not _LINE.match(line):
                faults.append(f"in its log: {line[:300]}")
        left = [*(set(self.temporary.rglob("*")) - self._at_start), *self.edits.rglob("*.part")]
        faults += [f"it left {path}" for path in left]
        try:
            json.loads(self.out.read_text())["edits"]
        except (ValueError, KeyError, TypeError) as error:
            faults.append(f"what it printed at its end is not its --json: {error!r}")
        return faults[:20]

    def __enter__(self) -> ServedProcess:
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
