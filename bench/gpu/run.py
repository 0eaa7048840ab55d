"""The run: which processes there are, when, and for how long; their findings become a report as they come."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cad_fast.files import require_writable_folder, write_text

from . import BEGIN, findings, report
from .processes import Process, Watched, module

SECTIONS = ("env", "correct", "tests", "linear", "conv", "model", "attribution", "compile")
TESTS = (
    "tests/ops/cases",
    "tests/kernels/cases",
    "tests/cuda/test_gpu.py",
    "tests/ops/test_bits.py",
    "tests/ops/test_seeded_mask.py",
)
TEST_LOG = "tests.jsonl"
# Of the time that is left when a section begins, by how much it weighs against those that are still to come; and the
# most seconds that it takes.
WEIGHTS = {"env": 8, "linear": 30, "conv": 15, "model": 22, "attribution": 22, "compile": 26}
MOST = {"env": 40, "linear": 90, "conv": 50, "model": 70, "attribution": 75, "compile": 200}
WARMED = {"linear": 2, "conv": 1, "model": 1, "attribution": 1, "compile": 1}
"""Sections whose kernels are compiled beforehand, and by how many processes."""
SHARE_OF_CHECKS = 0.45
"""Of the budget, for checks, tests and compilation, where times are wanted too."""
PATIENCE = {"correct": 60.0, "env": 40.0, "linear": 40.0, "conv": 40.0, "model": 60.0, "attribution": 80.0}
"""Seconds after which a case counts as hung. What is compiled may take all the time there is."""
DRY_PATIENCE = 20.0
LAST = 3.0
"""Seconds kept for the last report."""
REPORT_EVERY = 5.0


class Run:
    """One run of `python -m bench.gpu`."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.begin = BEGIN
        self.end = self.begin + arguments.budget - LAST
        self.arguments, self.dry = arguments, arguments.dry_run
        self.folder = Path(arguments.output)
        self.wanted = [section for section in SECTIONS if section in arguments.sections]
        self.processes: list[Process | Watched] = []
        self.cpus = len(os.sched_getaffinity(0))
        self.reported = 0.0

    def run(self) -> int:
        """Do everything; the exit code."""
        import torch

        if not self.dry and not torch.cuda.is_available():
            print("there is no CUDA device: nothing to check", file=sys.stderr)
            return 2
        self.folder = require_writable_folder(self.folder)
        for path in (self.folder / findings.NAME, self.folder / TEST_LOG):
            path.unlink(missing_ok=True)  # of a run before
        shutil.rmtree(self.folder / "places", ignore_errors=True)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the report of a run that is cut is written
        with (self.folder / "log.txt").open("w", encoding="utf-8") as log, self._ending():
            self.log = log
            os.environ.update(self.environment())
            self.sections = {section: self._prepared(section) for section in self.wanted if section in WEIGHTS}
            self.checks()
            for section in self.wanted:
                if section in WEIGHTS:
                    self.section(section)
            self.say("done")
        print((self.folder / "gpu.md").read_text(encoding="utf-8"))
        return int(report.is_bad(findings.read(self.folder), report.read_tests(self.folder / TEST_LOG)))

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        """However it ends: no process is left behind, and the report is written."""
        try:
            yield
        finally:
            for process in self.processes:
                process.end()
            self.report()

    def say(self, text: str) -> None:
        line = f"[{time.monotonic() - self.begin:6.1f}] {text}"
        print(line, flush=True)
        print(line, file=self.log, flush=True)

    def report(self) -> None:
        """Write gpu.md anew."""
        lines, tests = findings.read(self.folder), report.read_tests(self.folder / TEST_LOG)
        write_text(self.folder / "gpu.md", report.page(lines, tests, self.dry))
        self.reported = time.monotonic()

    def command(self, *arguments: str) -> list[str]:
        return module("--output", str(self.folder), *["--dry-run"] * self.dry, *arguments)

    def environment(self) -> dict[str, str]:
        """Of all processes: they share the processors, and what is compiled."""
        cache = Path(tempfile.gettempdir()) / "gpu-check"
        wanted = {
            "OMP_NUM_THREADS": "1" if self.dry else "2",
            "TRITON_CACHE_DIR": str(cache / "triton"),
            "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        }
        return {name: os.environ.get(name, value) for name, value in wanted.items()}

    # Everything at once: checks, tests, compilation.

    def checks(self) -> None:
        """Checks, tests and the compilation of what is timed later, side by side."""
        timed = [section for section in self.wanted if section in WEIGHTS and section != "env"]
        if not timed and not {"correct", "tests"} & set(self.wanted):
            return
        share = SHARE_OF_CHECKS if timed else 0.97
        end = self.begin + share * self.arguments.budget
        warming = [] if self.dry else self._warming(timed, end)
        waiting = self._check_processes() if "correct" in self.wanted else []
        # A few more processes than processors: they wait for the device, and for the disk when they start.
        share_of_tests = 0.4 if waiting else 1.0
        testers = max(1, int(share_of_tests * self.cpus)) if "tests" in self.wanted else 0
        tests = self._tests(testers) if testers else None
        places = max(1, self.cpus - testers)
        running: list[Watched] = []
        total = len(waiting)
        while time.monotonic() < end:
            while waiting and len(running) < places + (testers if tests is None or tests.code() is not None else 0):
                running.append(waiting.pop(0))
                running[-1].start(end, DRY_PATIENCE if self.dry else PATIENCE["correct"])
            for check in running:
                check.poll()
            running = [check for check in running if not check.done]
            tests_end = tests is None or tests.code() is not None
            if not waiting and not running and tests_end and all(each.code() is not None for each in warming):
                break
            if time.monotonic() > self.reported + REPORT_EVERY:
                self.report()
            time.sleep(0.1)
        for check in waiting:
            findings.append(self.folder, **check.facts, case="all", error="out of time: not begun", cut=True)
        for check in running:
            check.poll()  # which says that it is out of time
        self._end_of_checks(tests, warming)
        if total:
            self.say(f"checks: {total - len(waiting) - len(running)} of {total} processes to their end")

    def _end_of_checks(self, tests: Process | None, warming: list[Process]) -> None:
        if tests is not None:
            code = tests.code()
            findings.append(self.folder, section="tests", code=code, cut=code is None)
            self.say("tests: cut" if code is None else f"tests: ended with exit code {code}")
        for process in [*([tests] if tests else []), *warming]:
            if process.code() is None:
                process.end()
        self.report()

    def _warming(self, sections: list[str], end: float) -> list[Process]:
        started = []
        seconds = f"{end - time.monotonic():.1f}"
        for section in sections:
            for part in range(WARMED.get(section, 0)):
                warm = ["--worker", section, "--warm", f"{part}/{WARMED[section]}", "--seconds", seconds]
                started.append(Process(self.command(*warm), self.log))
        self.processes += started
        return started

    def _check_processes(self) -> list[Watched]:
        from . import correct

        checks = []
        for group in correct.groups(self.dry):
            if self.arguments.only not in group:
                continue
            op, backend, dtype = group.split(",")
            facts = {"section": "correct", "op": op, "backend": backend, "dtype": dtype}
            plant = ["--plant", self.arguments.plant] if self.arguments.plant else []
            command = self.command("--worker", "correct", "--group", group, *plant)
            checks.append(Watched(_place("correct", group), command, facts, self.folder, self.log))
        self.processes += checks
        return checks

    def _tests(self, workers: int) -> Process:
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
        command += ["-p", "bench.gpu.pytest_log", "--test-log", str(self.folder.resolve() / TEST_LOG)]
        if importlib.util.find_spec("xdist") is not None and workers > 1:
            command += ["-n", str(workers)]
        paths = self.arguments.tests or (["tests/ops/test_bits.py"] if self.dry else TESTS)
        command += ["-m", "not gpu and not slow" if self.dry else "gpu", *paths]
        started = Process(command, self.log)
        self.processes.append(started)
        return started

    # One after the other: times.

    def _prepared(self, section: str) -> Watched:
        """Its process imports what it needs beside the checks, and uses the device when its turn comes."""
        watched = Watched(section, self.command("--worker", section), {"section": section}, self.folder, self.log)
        self.processes.append(watched)
        watched.prepare()
        return watched

    def section(self, section: str) -> None:
        """Run a section alone, for its share of the time that is left."""
        now = time.monotonic()
        later = sum(WEIGHTS[each] for each in self.wanted[self.wanted.index(section) :] if each in WEIGHTS)
        seconds = min(MOST[section], (self.end - now) * WEIGHTS[section] / later)
        if seconds < 4:
            findings.append(self.folder, section=section, case="all", error="out of time: not begun", cut=True)
            self.say(f"{section}: not begun, there is no time")
            return
        watched = self.sections[section]
        patience = DRY_PATIENCE * 3 if self.dry else PATIENCE.get(section, seconds)
        watched.start(now + seconds, patience)
        while not watched.done:
            watched.poll()
            if time.monotonic() > self.reported + REPORT_EVERY:
                self.report()
            time.sleep(0.05)
        self.report()
        self.say(f"{section}: {time.monotonic() - now:.0f} of {seconds:.0f} s, restarted {watched.restarts} times")


def _place(section: str, group: str) -> str:
    from .worker import place_name

    return place_name(section, group)
