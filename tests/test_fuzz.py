"""Files from anywhere: what is in them either loads as something that can be used, or is an error of ours.

The loop over edit folders is in ``tests/edits/files/test_hostile.py``. These are recordings, scores and states of runs.
"""

from __future__ import annotations

import json
import random
import sqlite3
import struct

import pytest
import torch
from PIL import Image

from cad_fast import ComponentSpace, Edit, Scores, Selection
from cad_fast.attribution.curvature import Curvature
from cad_fast.attribution.store import STATE_NAME, RunState
from cad_fast.components.fingerprint import Fingerprint
from cad_fast.diffusion.generation import Generation
from cad_fast.recording.call import DenoiserCall
from cad_fast.recording.data import Recording
from tests.mutations import STRANGE, strange_bytes, strange_json, strange_metadata, strange_tensors

DOCUMENTED = (ValueError, FileNotFoundError, PermissionError)
SETTINGS = {"method": "exact", "seed": 1, "model": {"class": "Net"}}
CHECK = {"fraction": 0.1, "n": 8, "pearson": 0.9, "pearson_interval": [0.8, 0.95]}


def save_recording(folder) -> None:
    timestep = torch.tensor([3.0, 3.0])
    inputs = {"sample": torch.randn(2, 4, 2, 2), "timestep": timestep, "more": {"a": [torch.randn(2, 3), 1, None]}}
    calls = [DenoiserCall(i, timestep if i else 5.0, inputs, "sample", torch.randn(2, 4, 2, 2)) for i in range(2)]
    fingerprint = Fingerprint("Net", "abc", (0.5, -0.25))
    pictures = [Image.new("RGB", (4, 4))] * 2
    config = {"_class_name": "DDIM", "steps": 5}
    generation = Generation(num_inference_steps=2, guidance_scale=3.0)
    Recording(
        calls, ["a", "b"], [1, 2], generation, config, "epsilon", fingerprint, pictures, torch.randn(2, 4), 2,
        {"negative_prompt": ["", ""]},
    ).save(folder)  # fmt: skip


def use_recording(folder) -> None:
    loaded = Recording.load(folder)
    repr(loaded), loaded.timesteps, loaded.nbytes, [repr(call) for call in loaded.calls]
    loaded.select(rows=[0, 0]), loaded.select(timesteps=(0, 1000))
    Recording.concat([loaded, loaded]), json.dumps(loaded.generation.to_dict())
    loaded.fingerprint.difference(Fingerprint("Net", "abc", (0.5, -0.25)))


def save_scores(folder) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 3))
    space = ComponentSpace.of(model, "weight", "all")
    curvature = Curvature(torch.randn(2, space.n), torch.randn(2), torch.randn(2))
    provenance = {"concept": "cat", "trust": [CHECK], "seeds": [1, 2], "versions": {"torch": "2"}}
    Scores(torch.randn(space.n), space, provenance, torch.rand(space.n), curvature).save(folder, dtype="float16")


@pytest.mark.filterwarnings("ignore")
def use_scores(folder) -> None:
    loaded = Scores.load(folder)
    repr(loaded), loaded.concept, len(loaded), loaded.trust, loaded.top(3), loaded.by_module()
    edit = Edit.from_scores(loaded, Selection(0.2))
    edit.digest(), json.dumps(edit.provenance)


def save_state(folder) -> None:
    state = RunState(folder, SETTINGS, resume=False)
    state.add(0, torch.arange(6.0).double().reshape(2, 3))
    state.update(4, {"g": torch.arange(5.0), "n": torch.arange(4).reshape(2, 2)})
    state.save()
    state.close()


def use_state(folder) -> None:
    state = RunState(folder, SETTINGS, resume=True)
    try:
        assert type(state.done) is int and state.done >= 0
        assert all(tensor.numel() >= 0 for tensor in state.sums.values())
        for number, of_one in state.measured.items():
            assert type(number) is int and all(type(j) is float for j in of_one)
        torch.tensor([*state.measured.values()])
    finally:
        state.close()


def strange_state(rng, path) -> None:
    """A cell, a row, a table or the version of the database changed."""
    database = sqlite3.connect(path, isolation_level=None)
    try:
        table, columns = rng.choice(
            [("run", ["key", "value"]), ("ablations", ["number", "concept", "j"]), ("sums", ["name", "dtype", "shape"])]
        )
        if table == "sums" and rng.random() < 0.4:
            columns = ["data", "piece"]
        action = rng.randrange(8)
        if action == 0:
            database.execute(f"DELETE FROM {table} WHERE random() % 2")
        elif action == 1:
            database.execute(f"DROP TABLE {table}")
        elif action == 2:
            database.execute(f"PRAGMA user_version = {rng.choice([0, 1, 3, -1, 2**31 - 1])}")
        elif action == 3:
            settings = strange_json(rng, json.dumps(SETTINGS)).decode()
            database.execute("UPDATE run SET value = ? WHERE key = 'settings'", (settings,))
        else:
            value = rng.choice([each for each in STRANGE if isinstance(each, int | float | str | None)])
            value = value if not isinstance(value, int) or abs(value) < 2**63 else "9" * 5000
            value = rng.choice([value, b"", b"\xff\x00", "[" * 5000, "1e999", "[2, -1]", "[9999999999, 99999999999]"])
            if isinstance(value, str):
                value = value.encode("utf-8", "replace").decode()
            database.execute(f"UPDATE OR REPLACE {table} SET {rng.choice(columns)} = ? WHERE random() % 2", (value,))
    except sqlite3.Error:
        pass  # a change that the schema itself refuses
    finally:
        database.close()


def spoil(kind: str, rng, folder) -> None:
    """Damage one of the files in ``folder``."""
    if kind == "state":
        path = folder / STATE_NAME
        if rng.random() < 0.7:
            strange_state(rng, path)
        else:
            path.write_bytes(strange_bytes(rng, path.read_bytes()))
        return
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = rng.choice(files)
    changes = {".json": [strange_json, strange_json, strange_bytes], ".png": [strange_bytes]}
    tensors = [strange_metadata, strange_metadata, strange_tensors, strange_bytes]
    if rng.random() < 0.03:
        path.unlink()
        return
    change = rng.choice(changes.get(path.suffix, tensors))
    try:
        path.write_bytes(change(rng, path.read_bytes()))
    except (ValueError, struct.error):
        path.write_bytes(b"")


KINDS = {
    "recording": (save_recording, use_recording),
    "scores": (save_scores, use_scores),
    "state": (save_state, use_state),
}


def fuzz(kind: str, tmp_path, n: int, seed: int) -> tuple[int, int]:
    """(files that loaded and could be used, files that were refused)."""
    save, use = KINDS[kind]
    save(tmp_path / "whole")
    whole = {path.relative_to(tmp_path / "whole"): path.read_bytes() for path in (tmp_path / "whole").rglob("*.*")}
    rng, used, refused = random.Random(seed), 0, 0
    folder = tmp_path / "spoiled"
    for number in range(n):
        for path in folder.rglob("*.*"):
            path.unlink()
        for name, data in whole.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        spoil(kind, rng, folder)
        try:
            use(folder)
            used += 1
        except DOCUMENTED as error:
            refused += 1
            assert len(str(error)) < 3000, f"number {number}"
        except BaseException as error:
            raise AssertionError(f"number {number} of seed {seed}: {error!r}") from error
    assert used and refused > n / 3, (used, refused)
    return used, refused


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_spoiled_files(kind, tmp_path) -> None:
    fuzz(kind, tmp_path, 150, seed=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_two_thousand_spoiled_files(kind, tmp_path) -> None:
    print(kind, fuzz(kind, tmp_path, 2_000, seed=1))
