"""``python -m tests.soak --output FOLDER``: jobs that are killed and a server under load, for as long as wanted.

What must hold is in docs/security.md. ``soak.json`` says what was done, what came out and what failed, with the seed
that repeats it. The exit status is 1 if anything failed. Run by `make soak`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

# One thread of torch: forks have no other, and two that spin for one another take many times as long.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

from cad_fast.files import require_writable_folder, write_json
from cad_fast.version import versions

from .jobs import JOBS
from .kills import kill_jobs, warm_up
from .requests import ask_all


def main() -> None:
    """Kill, ask, and report."""
    parser = argparse.ArgumentParser(description="jobs that are killed and a server under load")
    parser.add_argument(
        "--output", type=Path, default=Path("soak-output"), help="folder for the report and what failed"
    )
    parser.add_argument("--kills", type=int, default=100, help="kills over all jobs (default 100)")
    parser.add_argument("--requests", type=int, default=5000, help="requests before the SIGTERM (default 5000)")
    parser.add_argument(
        "--blocks", type=int, default=10, help="after how many parts of them it is looked at (default 10)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the requests (default 0)")
    parser.add_argument("--jobs", nargs="+", choices=[job.name for job in JOBS], help="only these jobs")
    arguments = parser.parse_args()
    output = require_writable_folder(arguments.output.resolve())
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {text}", flush=True)

    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    report: dict[str, Any] = {"settings": settings, "versions": versions()}
    failures = 0
    # First, as long as this process has one thread.
    if arguments.kills:
        warm_up()
        jobs = [job for job in JOBS if arguments.jobs is None or job.name in arguments.jobs]
        report["kills"] = kill_jobs(arguments.kills, arguments.seed, output / "kills", say, jobs).to_dict()
        failures += len(report["kills"]["failures"])
    if arguments.requests:
        folder = output / "serve"
        report["requests"] = ask_all(arguments.requests, arguments.blocks, arguments.seed, folder, say)
        failures += len(report["requests"]["failures"])
    report["seconds"] = round(time.monotonic() - started)
    write_json(output / "soak.json", report)
    for part in ("kills", "requests"):
        for failure in report.get(part, {}).get("failures", ())[:20]:
            say(f"FAILED {failure}")
    say(f"{failures} failures, see {output / 'soak.json'}")
    sys.exit(int(failures > 0))


if __name__ == "__main__":
    main()
