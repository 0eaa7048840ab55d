"""The short form of the soak, and that its checks see what they are there for."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cad_fast.attribution.store import STATE_NAME, RunState
from tests.soak.answers import Wrong, error_of, require_error, require_unlucky
from tests.soak.jobs import Job
from tests.soak.kills import Kills, kill_jobs
from tests.soak.load import Versions
from tests.soak.requests import growth
from tests.soak.served import LIMITS
from tests.soak.watched import LOADED

ROOT = Path(__file__).resolve().parents[2]


def soak(folder: Path, *options: str) -> dict[str, Any]:
    """The report of a soak in a process of its own, which forks and must have no threads."""
    command = [sys.executable, "-m", "tests.soak", "--output", str(folder), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
    return json.loads((folder / "soak.json").read_text())


def test_a_few_kills_and_requests(tmp_path) -> None:
    jobs = ("exact", "scores saved over each other")
    report = soak(tmp_path, "--kills", "4", "--jobs", *jobs, "--requests", "40", "--blocks", "2")
    assert report["kills"]["of_job"] == dict.fromkeys(sorted(jobs), 2)
    requests = report["requests"]
    assert sum(count for name, count in requests["outcomes"].items() if ": " in name) == 40
    assert requests["pictures"]["compared"] >= 5 and requests["ending"]["exit_code"] == 0
    assert [path.name for path in (tmp_path / "kills").iterdir()] == []


@pytest.mark.slow
def test_the_full_form(tmp_path) -> None:
    report = soak(tmp_path)
    assert report["kills"]["kills"] == 100 and report["requests"]["requests"] == 5000
    print(json.dumps({**report["kills"], **report["requests"]}, indent=1))


def killed(folder: Path, work: Callable[[Path, int], None]) -> Kills:
    """What is said of a job that calls ``work`` with its folder and how often it has been run there."""

    def run(folder: Path, material: Path) -> int:
        sys.audit(LOADED)
        runs = folder.parent / f"{folder.name}.runs"
        with runs.open("a") as file:
            file.write("x")
        work(folder, len(runs.read_text()))
        return 0

    return kill_jobs(4, 0, folder, lambda text: None, [Job("planted", run)])


def write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    time.sleep(0.02)
    part.rename(path)


def in_place(folder: Path, runs: int) -> None:
    with (folder / "a.json").open("w") as file:
        file.write('{"a":')
        file.flush()
        time.sleep(0.1)
        file.write("1}")


def another_result(folder: Path, runs: int) -> None:
    write(folder / "a.json", json.dumps({"runs": runs}))


def left_behind(folder: Path, runs: int) -> None:
    if runs > 1:
        (folder / "b.json").write_text("{}")
    write(folder / "a.json", "{}")


def starts_anew(folder: Path, runs: int) -> None:
    for path in folder.glob(f"{STATE_NAME}*"):
        path.unlink()
    state = RunState(folder, {}, resume=False)
    for number in range(20):
        state.add(number, torch.zeros(1, 1, dtype=torch.float64))
        time.sleep(0.01)
    state.finish()
    write(folder / "a.json", "{}")


def refused(folder: Path, runs: int) -> None:
    if runs > 1:
        raise RuntimeError("this cannot be resumed")
    write(folder / "a.json", "{}")


def faultless(folder: Path, runs: int) -> None:
    write(folder / "a.json", "{}")


WORKS: dict[str, Callable[[Path, int], None]] = {
    work.__name__: work for work in (in_place, another_result, left_behind, starts_anew, refused, faultless)
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """What is said of each of ``WORKS``, by a process that forks in place of this one, which may have threads."""
    folder = tmp_path_factory.mktemp("planted")
    lines = ["import json, sys", "from pathlib import Path", "from tests.soak import test_soak as own"]
    lines += ["folder = Path(sys.argv[1])"]
    lines += ["print(json.dumps({name: own.killed(folder / name, own.WORKS[name]).to_dict() for name in own.WORKS}))"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines), str(folder)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        ("in_place", "a file was visible that was not whole"),
        ("another_result", "not equal to a run that was never killed: a.json"),
        ("left_behind", "the folder holds ['a.json', 'b.json'], without kills ['a.json']"),
        ("starts_anew", f"{STATE_NAME} went back from "),
        ("refused", "it ended with 70 when it was run again"),
    ],
)
def test_planted_faults_of_jobs_are_seen(outcomes, work, reason) -> None:
    failures = outcomes[work]["failures"]
    assert any(failure["reason"].startswith(reason) for failure in failures), failures
    assert all(failure["job"] == "planted" and failure["seed"] == 0 and failure["kills"] for failure in failures)


def test_a_job_without_faults_has_none(outcomes) -> None:
    outcome = outcomes["faultless"]
    assert outcome["failures"] == [] and outcome["kills"] == 4 and outcome["ended"]["planted"] >= 1


JSON = {"content-type": "application/json", "retry-after": "1"}
FULL = {"error": {"message": "wait", "type": "rate_limit_error", "param": None, "code": "queue_full"}}


@pytest.mark.parametrize(
    ("status", "headers", "body", "reason"),
    [
        (429, {"content-type": "text/plain"}, FULL, "no JSON"),
        (429, {**JSON, "retry-after": ""}, FULL, "no Retry-After"),
        (503, JSON, FULL, "do not go together"),
        (429, JSON, {**FULL, "detail": ""}, "not OpenAI's form"),
        (429, JSON, {"error": {**FULL["error"], "type": "server_error"}}, "of another type"),
        (429, JSON, {"error": {**FULL["error"], "message": "in app.py, line 3"}}, "the server's insides"),
        (500, JSON, {"detail": "Internal Server Error"}, "not OpenAI's form"),
    ],
)
def test_answers_that_are_not_as_documented_are_seen(status, headers, body, reason) -> None:
    assert error_of(429, JSON, json.dumps(FULL).encode()) == "queue_full"
    with pytest.raises(Wrong, match=reason):
        error_of(status, headers, json.dumps(body).encode())


def test_answers_that_should_be_others_are_seen() -> None:
    with pytest.raises(Wrong, match="the error queue_full, expected invalid"):
        require_error(429, JSON, json.dumps(FULL).encode(), "invalid")
    with pytest.raises(Wrong, match="an answer 200, expected invalid"):
        require_error(200, JSON, b"{}", "invalid")


def test_a_deadline_that_has_not_passed_is_seen() -> None:
    error = {"message": "the deadline passed", "type": "server_error", "param": None, "code": "deadline_exceeded"}
    body = json.dumps({"error": error}).encode()
    assert require_unlucky(LIMITS["deadline"] + 1, 504, JSON, body, "queue_full") == "deadline_exceeded"
    with pytest.raises(Wrong, match=r"the deadline of 60 s passed after 2\.0 s"):
        require_unlucky(2.0, 504, JSON, body, "queue_full")


def test_versions_that_may_have_been_in_use() -> None:
    async def go() -> None:
        versions = Versions()
        moments = [time.monotonic()]

        async def change() -> None:
            await asyncio.sleep(0.01)
            moments.append(time.monotonic())
            await asyncio.sleep(0.01)

        await versions.change(1, change)
        moments.append(time.monotonic())
        before, during, after = moments
        assert versions.between(0, before) == (0,) and versions.between(before, during) == (0, 1)
        assert versions.between(during, during) == (0, 1) and versions.between(after, after) == (1,)

    asyncio.run(go())


def test_what_stays_behind_is_seen() -> None:
    idle = {"memory_kib": 1000, "threads": 5, "files": 7, "Edit": 3, "PictureJob": 0, "Ticket": 0, "PipelineRun": 0}
    assert growth([idle] * 12, 3) == []
    for name, value in (("memory_kib", 1100), ("threads", 6), ("files", 8)):
        assert growth([idle] * 11 + [{**idle, name: value}], 3) == [f"{name} grew from {idle[name]} to {value}"]
    assert growth([idle, {**idle, "Edit": 4}], 3) == ["4 edits after block 1, 3 are in use"]
    assert growth([{**idle, "Ticket": 1}], 3) == ["1 of Ticket after block 0, although nothing is asked"]
