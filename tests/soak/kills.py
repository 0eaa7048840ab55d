"""Jobs killed by SIGKILL at random moments and run again until they end, against the same job left alone."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cad_fast.attribution.store import STATE_NAME

from .jobs import JOBS, Job, content, contents, progress
from .watched import Kill, Run, run

# A folder whose job was killed so many times is let be until it ends.
MOST_KILLS = 6
# So many times as many folders as kills are tried: in some, the job ends before its moment comes.
MOST_FOLDERS = 10
# Longest time from the beginning of a change to the kill in the middle of it, in seconds.
JITTER = 0.003


@dataclass
class Kills:
    """What came of all kills.

    Attributes:
        of_job: kills of each job.
        of_phase: kills by what lay in the folder.
        ended: how many folders were brought to their end, and equal a run that was never killed.
        refused: kills after which files that belong together were refused on loading, as of different saves.
        failures: what was wrong, with enough to repeat it.
    """

    of_job: Counter[str] = field(default_factory=Counter)
    of_phase: Counter[str] = field(default_factory=Counter)
    of_mode: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON."""
        counted = {
            name: dict(sorted(value.items())) for name, value in vars(self).items() if isinstance(value, Counter)
        }
        return {"kills": self.of_job.total(), **counted, "refused": self.refused, "failures": self.failures}


def kill_jobs(total: int, seed: int, folder: Path, say: Callable[[str], None], jobs: Sequence[Job] = JOBS) -> Kills:
    """Kill the jobs ``total`` times in all, each as often, one job after the other."""
    outcome = Kills()
    for place, job in enumerate(jobs):
        kills = total // len(jobs) + (place < total % len(jobs))
        if kills:
            _Killed(job, folder / job.name.replace(" ", "-"), seed, outcome, say).go(kills)
            say(f"{job.name}: {outcome.of_job[job.name]} kills, {outcome.ended[job.name]} ended")
    return outcome


class _Killed:
    """One job, killed time and again."""

    def __init__(self, job: Job, folder: Path, seed: int, outcome: Kills, say: Callable[[str], None]) -> None:
        self.job, self.folder, self.seed, self.outcome, self.say = job, folder, seed, outcome, say
        self.draw = random.Random(f"{seed} {job.name}")
        self.material, self.log = folder / "material", folder / "log"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.history: list[dict[str, Any]] = []
        self.reached: dict[str, int] = {}

    def go(self, kills: int) -> None:
        """Run it once undisturbed, then kill it so many times and compare each folder that was brought to its end."""
        if self.job.material is not None and self._run(self.material, lambda: _made(self.job, self.material)).code:
            return self._fail("what the job needs could not be made")
        alone = self.folder / "alone"
        whole = self._run(alone, lambda: self.job.run(alone, self.material))
        if whole.code != 0:
            return self._fail(f"it ended with {whole.code} although nobody killed it")
        held = set(map(self.job.together, self.material.iterdir())) if self.job.together else set()
        number = 0
        while (left := kills - self.outcome.of_job[self.job.name]) > 0:
            number += 1
            if number > MOST_FOLDERS * kills:
                return self._fail(f"it ended {number} times before its moment came: it cannot be killed so often")
            folder = self.folder / f"killed-{number}"
            self.history, self.reached = [], {}
            self._until_it_ends(folder, min(left, MOST_KILLS), whole, held)
            self._compare(folder, alone)
            if self.outcome.failures and self.outcome.failures[-1]["job"] == self.job.name:
                return None  # its folder stays
            shutil.rmtree(folder)
        shutil.rmtree(self.folder)
        return None

    def _run(self, folder: Path, job: Callable[[], int], kill: Kill | None = None) -> Run:
        folder.mkdir(parents=True, exist_ok=True)
        return run(job, folder, self.log, kill)

    def _until_it_ends(self, folder: Path, most: int, whole: Run, held: set[str]) -> None:
        """Kill the job up to ``most`` times, looking at the folder after each."""
        kills = 0
        while True:
            kill = self._moment(whole) if kills < most else None
            ended = self._run(folder, lambda: self.job.run(folder, self.material), kill)
            if ended.code is not None:
                if ended.code:
                    self._fail(f"it ended with {ended.code} when it was run again")
                return
            kills += 1
            self._note(folder, kill, ended)
            self._look(folder, held)

    def _moment(self, whole: Run) -> Kill:
        """Draw when to kill: a twentieth while the model loads, the others at any time or by what is being written."""
        draw = self.draw
        mode = draw.choices(["early", "time", "at", "in"], [5, 35, 30, 30])[0]
        if mode == "early":
            return Kill(mode, draw.uniform(0, whole.loaded))
        if mode == "time":
            return Kill(mode, draw.uniform(0, whole.seconds))
        change = draw.choice(sorted(whole.changes))
        return Kill(
            mode, draw.uniform(0, JITTER) if mode == "in" else 0.0, change, draw.randint(1, whole.changes[change])
        )

    def _note(self, folder: Path, kill: Kill | None, ended: Run) -> None:
        assert kill is not None
        names = {path.name for path in folder.rglob("*") if path.is_file()}
        parts = any(name.endswith(".part") for name in names)
        finished = any(Path(name).suffix in (".safetensors", ".json") for name in names)
        phase = (
            "within a write"
            if parts or ended.last.startswith(("sqlite COMMIT", "sqlite INSERT"))
            else (
                "after the first files"
                if finished
                else "between saves"
                if STATE_NAME in names
                else "before the first save"
            )
        )
        self.outcome.of_job[self.job.name] += 1
        self.outcome.of_phase[phase] += 1
        self.outcome.of_mode[kill.mode] += 1
        self.history.append({**asdict(kill), "last_change": ended.last, "left": sorted(names)})

    def _look(self, folder: Path, held: set[str]) -> None:
        """Every file with a final name is whole, nothing done is lost, and files of two saves are refused together."""
        try:
            contents(folder)
            before, self.reached = self.reached, progress(folder)
        except Exception as error:
            self._fail(f"a file was visible that was not whole: {error!r}")
            return
        # A state that is gone is of a run whose scores were saved: were they not, the comparison would tell.
        if lost := [name for name, count in self.reached.items() if count < before.get(name, 0)]:
            self._fail(f"{lost[0]} went back from {before[lost[0]]} to {self.reached[lost[0]]} by going on")
        if self.job.together is None:
            return
        try:
            found = self.job.together(folder)
        except (ValueError, FileNotFoundError):
            self.outcome.refused += 1
        else:
            if found not in held:
                self._fail(f"a mixture of two saves was loaded: {found}, saved were {sorted(held)}")

    def _compare(self, folder: Path, alone: Path) -> None:
        if self.outcome.failures and self.outcome.failures[-1]["job"] == self.job.name:
            return
        names, expected = ({str(path.relative_to(each)) for path in each.rglob("*")} for each in (folder, alone))
        if names != expected:
            return self._fail(f"the folder holds {sorted(names)}, without kills {sorted(expected)}")
        if self.job.together is not None:
            same = self.job.together(folder) == self.job.together(alone)
            different = [] if same else ["what is loaded"]
        else:
            different = [
                name for name in names if (folder / name).is_file() and content(folder / name) != content(alone / name)
            ]
        if different:
            return self._fail(f"not equal to a run that was never killed: {', '.join(different)}")
        self.outcome.ended[self.job.name] += 1
        return None

    def _fail(self, reason: str) -> None:
        self.say(f"WRONG, {self.job.name}: {reason}")
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        self.outcome.failures.append(
            {
                "job": self.job.name,
                "seed": self.seed,
                "reason": reason,
                "folder": str(self.folder),
                "kills": self.history,
                "log": lines[-15:],
                "time": time.strftime("%H:%M:%S"),
            }
        )


def _made(job: Job, folder: Path) -> int:
    assert job.material is not None
    job.material(folder)
    return 0


def warm_up() -> None:
    """Import what the jobs need, so that no kill is spent on it. Nothing is loaded: that would start threads."""
    import diffusers  # noqa: F401
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel  # noqa: F401
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

    import cad_fast.attribution.attributor
    import cad_fast.cli.attribute_results
    import cad_fast.evaluation
    import cad_fast.report.plots
    import cad_fast.report.sheets
    import cad_fast.search.search
    import cad_fast.zoo.emoji_scorer  # noqa: F401
