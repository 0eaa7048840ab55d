"""What the processes of a run tell each other: findings, a line of JSON each, and the case that a process is at."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

NAME = "gpu.jsonl"


def append(folder: Path, **finding: Any) -> None:
    """Add a line. One write, so that it is whole also beside other processes."""
    line = json.dumps(finding, default=str) + "\n"
    with (folder / NAME).open("ab", buffering=0) as file:
        file.write(line.encode())


def read(folder: Path) -> list[dict[str, Any]]:
    """All findings so far; a line that a process did not live to finish is left out."""
    path, findings = folder / NAME, []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            findings.append(json.loads(line))
        except ValueError:
            continue
    return findings


class Place:
    """A number and a text that one process writes into a file and another reads: the case that the first is at."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / "places" / name

    def begin(self, number: int, case: str) -> None:
        self.path.parent.mkdir(exist_ok=True)
        part = self.path.with_name(self.path.name + ".part")
        part.write_text(f"{number}\n{case}\n", encoding="utf-8")
        part.replace(self.path)

    def read(self) -> tuple[int, str] | None:
        """None where no case was begun."""
        if not self.path.exists():
            return None
        number, case = self.path.read_text(encoding="utf-8").splitlines()[:2]
        return int(number), case

    def age(self) -> float | None:
        """Seconds since the case was begun."""
        return time.time() - self.path.stat().st_mtime if self.path.exists() else None
