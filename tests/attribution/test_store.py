"""Runs that are killed, stopped, resumed with other settings, run twice at once, or whose file is damaged."""

from __future__ import annotations

import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import cad_fast
from cad_fast.attribution import Attributor, Scores
from cad_fast.attribution.measuring import measurer as measurer_module
from cad_fast.attribution.store import STATE_NAME, RunState
from tests.attribution.common import interrupt
from tests.pipelines import stable_diffusion

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"method": "regression", "options": {"seed": 3, "fraction": 0.1}, "prompts": ["a cat"]}


def record(pipeline):
    return cad_fast.record(pipeline, ["a cat", "a dog"], num_inference_steps=2, guidance_scale=3.0, progress=False)


def attributor(pipeline) -> Attributor:
    return Attributor(pipeline, kind="head", method="regression", ablations=60, fraction=0.2, draw="bernoulli")


def state(folder, settings=SETTINGS, resume=True, **arguments) -> RunState:
    return RunState(folder, settings, resume=resume, **arguments)


def test_what_was_written_is_read_bit_for_bit(tmp_path) -> None:
    values = torch.randn(2, 5, dtype=torch.float64) * 10.0 ** torch.arange(-300, 301, 150, dtype=torch.float64)
    sums = {"kept": torch.randn(3, 4), "j": torch.randn(7, dtype=torch.float64), "none": torch.zeros(0, 2)}
    first = state(tmp_path, resume=False)
    first.add(10, values)
    first.update(4, sums)
    first.save()
    first.close()
    again = state(tmp_path)
    assert again.done == 4 and sorted(again.measured) == [10, 11, 12, 13, 14]
    assert torch.equal(torch.tensor([again.measured[n] for n in range(10, 15)], dtype=torch.float64).T, values)
    assert again.sums.keys() == sums.keys()
    for name, tensor in sums.items():
        assert again.sums[name].dtype == tensor.dtype and torch.equal(again.sums[name], tensor)
    again.finish()
    assert not list(tmp_path.iterdir())


def test_large_sums_are_written_in_pieces(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("cad_fast.attribution.store.PIECE_BYTES", 64)
    sums = {"w": torch.randn(5, 33)}
    first = state(tmp_path, resume=False)
    first.update(1, sums)
    first.save()
    first.close()
    again = state(tmp_path)
    assert torch.equal(again.sums["w"], sums["w"])
    again.sums["w"] += 1  # sums go on being added to
    again.close()


def test_sums_are_saved_every_interval(tmp_path) -> None:
    first = state(tmp_path, resume=False, interval=1000.0)
    first.update(1, {"w": torch.ones(2)})
    first.close()
    second = state(tmp_path, interval=0.0)
    assert second.done == 0 and not second.sums
    second.update(2, {"w": torch.ones(2)})
    second.close()
    third = state(tmp_path)
    assert third.done == 2
    third.close()


def test_other_settings_are_refused_by_name(tmp_path) -> None:
    state(tmp_path, resume=False).close()
    with pytest.raises(FileExistsError, match="resume=True"):
        state(tmp_path, resume=False)
    other = {**SETTINGS, "options": {"seed": 4, "fraction": 0.1}}
    with pytest.raises(ValueError, match=r"settings \(options\.seed: 3 then, 4 now\)"):
        state(tmp_path, other)
    state(tmp_path).close()  # a refusal lets go of the file


def test_two_runs_at_once_are_refused(tmp_path) -> None:
    first = state(tmp_path, resume=False)
    for resume in (True, False):  # one that runs is not one to delete
        with pytest.raises(RuntimeError, match="in use: another process"):
            state(tmp_path, resume=resume)
    first.close()
    state(tmp_path).close()


@pytest.mark.parametrize("damage", ["text", "cut", "overwritten", "other", "version", "settings", "sums"])
def test_a_damaged_file_is_named(tmp_path, damage: str) -> None:
    path = tmp_path / STATE_NAME
    first = state(tmp_path, resume=False)
    first.add(0, torch.randn(1, 2000, dtype=torch.float64))
    first.update(1, {"w": torch.ones(300)})
    first.save()
    first.close()
    data = bytearray(path.read_bytes())
    assert len(data) > 20_000
    if damage == "text":
        path.write_text("not a database, " * 2000)
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "overwritten":
        data[4096 : len(data) - 4096] = b"\xff" * (len(data) - 8192)
        path.write_bytes(data)
    else:
        with sqlite3.connect(path) as database:
            if damage == "other":
                path.unlink()
                database = sqlite3.connect(path)
                database.execute("CREATE TABLE something (x)")
            elif damage == "version":
                database.execute("PRAGMA user_version = 99")
            elif damage == "settings":
                database.execute("UPDATE run SET value = '{' WHERE key = 'settings'")
            else:
                database.execute("UPDATE sums SET shape = '[7]'")
        database.commit()
        database.close()
    expected = "has format (99|0), this version" if damage in ("version", "other") else "is damaged .*delete it"
    with pytest.raises(ValueError, match=f"{STATE_NAME} {expected}"):
        state(tmp_path)


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(tmp_path, monkeypatch) -> None:
    pipeline = stable_diffusion()
    recording, run = record(pipeline), attributor(pipeline)
    expected = run.run(recording, rows_per_pass=8, progress=False)
    groups = interrupt(monkeypatch, measurer_module.Measurer, "measure", 4)
    with pytest.raises(KeyboardInterrupt, match=rf"{STATE_NAME} keeps what was done.*resume=True"):
        run.run(recording, rows_per_pass=8, output_dir=tmp_path, progress=False)
    with pytest.raises(ValueError, match="rows_per_pass: 8 then, 16 now"):
        run.run(recording, rows_per_pass=16, output_dir=tmp_path, resume=True, progress=False)
    other = dataclasses.replace(recording, scheduler_config={**recording.scheduler_config, "beta_end": 0.5})
    with pytest.raises(ValueError, match=r"recording\.scheduler\.beta_end: [\d.]+ then, 0\.5 now"):
        run.run(other, rows_per_pass=8, output_dir=tmp_path, resume=True, progress=False)
    scores = run.run(recording, rows_per_pass=8, output_dir=tmp_path, resume=True, progress=False)
    assert len(groups) == 60 // 2 + 1  # two ablations of 4 rows at a time; the stopped group again, and no other
    assert torch.equal(scores.values, expected.values)
    assert torch.equal(Scores.load(tmp_path).values, expected.values)
    assert not (tmp_path / STATE_NAME).exists()


SLOW_RUN = """
import sys, time, torch
import tests.attribution.test_store as own
from cad_fast.attribution.measuring import measurer
from tests.attribution.common import interrupt

measured = measurer.Measurer.measure
measurer.Measurer.measure = lambda *a: (time.sleep(0.05), print("group", flush=True), measured(*a))[2]
pipeline = own.stable_diffusion()
recording = own.record(pipeline)
print("ready", flush=True)
own.attributor(pipeline).run(recording, rows_per_pass=8, output_dir=sys.argv[1], resume=True, progress=False)
"""


def test_killed_twice_and_resumed_is_the_same_to_the_bit(tmp_path) -> None:
    """SIGKILL at whatever moment, in a process of its own; the rest is done here."""
    seen = []
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", SLOW_RUN, str(tmp_path)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for _ in range(3):
            assert process.stdout.readline() == "group\n"
        time.sleep(0.1 * torch.rand(()).item())
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    with sqlite3.connect(tmp_path / STATE_NAME) as database:
        seen = [number for (number,) in database.execute("SELECT number FROM ablations ORDER BY number")]
    database.close()
    assert 0 < len(seen) < 60 and seen == list(range(len(seen)))
    pipeline = stable_diffusion()
    recording = record(pipeline)
    expected = attributor(pipeline).run(recording, rows_per_pass=8, progress=False)
    scores = attributor(pipeline).run(recording, rows_per_pass=8, output_dir=tmp_path, resume=True, progress=False)
    assert torch.equal(scores.values, expected.values)
    assert torch.equal(scores.standard_error, expected.standard_error)


@pytest.mark.parametrize("method", ["gradient", "ablated_gradient"])
def test_a_run_stopped_while_sums_change_does_not_count_a_pass_twice(tmp_path, monkeypatch, method) -> None:
    pipeline = stable_diffusion()
    recording = record(pipeline)
    run = Attributor(pipeline, kind="neuron", method=method)
    settings = {"rows_per_pass": 2, "progress": False}
    expected = run.run(recording, **settings)
    monkeypatch.setattr(RunState, "update", lambda own, *a, before=RunState.update: (before(own, *a), stop(own))[0])
    done = []

    def stop(own: RunState) -> None:
        done.append(own.done)
        if len(done) == 1:
            own.save()
        if len(done) == 2:  # as in the middle of what adds the third pass to the sums
            next(iter(own.sums.values())).add_(100.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.run(recording, output_dir=tmp_path, **settings)
    scores = run.run(recording, output_dir=tmp_path, resume=True, **settings)
    assert done[2] == 2, "it goes on from what was last written, after the first pass"
    assert torch.equal(scores.values, expected.values)
