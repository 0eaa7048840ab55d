"""Pictures of a table: drawn once, whole, under the edits of their rows; continued after a kill."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
from PIL import Image

import cad_fast
from cad_fast.evaluation.drawing import draw, image_seed
from cad_fast.files import write_json
from cad_fast.integrations import picture_worker
from cad_fast.integrations.picture_worker import PictureRun, PictureWorker, is_whole, remaining
from tests.edits.rows.test_row_edits import random_edit

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_data" / "draw.py"
GENERATION = {"num_inference_steps": 2, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def pipeline():
    pipeline = cad_fast.load_pipeline("zoo:emoji")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def edits(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("edits")
    for number, name in enumerate(("no-car", "no-cat")):
        random_edit(pipeline.unet, name, number, target="cross-attention-kv").save_pretrained(folder / name)
    return folder


def run_in(folder, edits=None, **more):
    return PictureRun("zoo:emoji", str(folder), None if edits is None else str(edits), GENERATION, **more)


def table():
    return {
        "prompt": ["a car", "a car", "a cat", "a cat", "a dog"],
        "edit": ["", "no-car", "no-car+no-cat", "no-cat", None],
        "strength": [float("nan"), 1.0, 0.5, 1.0, 1.0],
        "seed": [3, 3, 4, 4, float("nan")],
        "id": [1, 2, 3, 4, 5],
    }


def levels(path):
    return numpy.asarray(Image.open(path).convert("RGB")).astype(int)


def expected(pipeline, edits, prompt, names, strength, seed):
    edit = None
    for name in names:
        loaded = cad_fast.load_edit(edits / name)
        edit = loaded if edit is None else edit | loaded
    generation = cad_fast.Generation(**GENERATION)
    if edit is None:
        image = draw(pipeline, [prompt], [seed], generation)[0]
    else:
        handles = [cad_fast.load_edit(edits / name).fuse(pipeline, strength) for name in names]
        image = draw(pipeline, [prompt], [seed], generation)[0]
        for handle in handles[::-1]:
            handle.undo()
    return numpy.asarray(image.convert("RGB")).astype(int)


def test_each_row_under_its_own_edits(pipeline, edits, tmp_path) -> None:
    worker = PictureWorker(run_in(tmp_path, edits), batch_size=2)
    columns = {name: numpy.array(values, dtype=object) for name, values in table().items()}
    answer = worker(columns)
    assert answer["drawn"] == [True] * 5 and answer["id"] == [1, 2, 3, 4, 5]
    wanted = [
        ("a car", [], 1.0, 3),
        ("a car", ["no-car"], 1.0, 3),
        ("a cat", ["no-car", "no-cat"], 0.5, 4),
        ("a cat", ["no-cat"], 1.0, 4),
        ("a dog", [], 1.0, image_seed(0, "a dog", 0)),
    ]
    pictures = [levels(tmp_path / path) for path in answer["path"]]
    for picture, given in zip(pictures, wanted, strict=True):
        assert abs(picture - expected(pipeline, edits, *given)).max() <= 1  # other batches round otherwise
    assert abs(pictures[0] - pictures[1]).max() > 10 and abs(pictures[2] - pictures[3]).max() > 10


def test_what_is_there_is_not_drawn_again(edits, tmp_path, monkeypatch) -> None:
    first = PictureWorker(run_in(tmp_path, edits))(table())
    paths = [tmp_path / path for path in first["path"]]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}
    # A half-written picture, an empty one, and a part of a process that was killed do not count.
    paths[1].write_bytes(before[paths[1]][1][:-20])
    paths[2].write_bytes(b"")
    paths[3].unlink()
    (paths[3].parent / f".{paths[3].name}.part").write_bytes(before[paths[3]][1])
    rows = [{name: values[i] for name, values in table().items()} for i in range(5)]
    assert [row["id"] for row in remaining(run_in(tmp_path, edits), rows + rows)] == [2, 3, 4]
    again = PictureWorker(run_in(tmp_path, edits), batch_size=3)(table())
    assert again["drawn"] == [False, True, True, True, False] and again["path"] == first["path"]
    for path, (time_of, data) in before.items():
        assert is_whole(path)
        if path in (paths[0], paths[4]):
            assert path.stat().st_mtime_ns == time_of and path.read_bytes() == data
    assert remaining(run_in(tmp_path, edits), rows) == []

    def loaded(*_, **__):
        raise AssertionError("the model was loaded for nothing")

    monkeypatch.setattr(picture_worker, "load_pipeline", loaded)
    assert PictureWorker(run_in(tmp_path, edits))(table())["drawn"] == [False] * 5
    assert PictureWorker(run_in(tmp_path, edits))({}) == {"path": [], "drawn": []}


def test_the_same_row_twice_is_one_picture(tmp_path) -> None:
    answer = PictureWorker(run_in(tmp_path))({"prompt": ["a car", "a car"], "seed": ["7", "7"]})
    assert answer["path"][0] == answer["path"][1] and answer["drawn"] == [True, True]
    assert len(list(tmp_path.rglob("*.png"))) == 1


def test_an_edit_that_changed_is_another_picture(pipeline, edits, tmp_path) -> None:
    own = tmp_path / "edits"
    batch = {"prompt": ["a car"], "edit": ["e"], "seed": [1]}
    random_edit(pipeline.unet, "e", 1).save_pretrained(own / "e")
    first = PictureWorker(run_in(tmp_path / "out", own))(batch)
    random_edit(pipeline.unet, "e", 2).save_pretrained(own / "e")
    second = PictureWorker(run_in(tmp_path / "out", own))(batch)
    assert first["path"] != second["path"] and second["drawn"] == [True]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"edit": "no-car"}, "has no prompt"),
        ({"prompt": ""}, "has no prompt"),
        ({"prompt": "a", "edit": "nothing"}, r"there is no edit 'nothing' in .*; there are: no-car, no-cat"),
        ({"prompt": "a", "edit": "../edits/no-car"}, "edit name '../edits/no-car'"),
        ({"prompt": "a", "edit": "no-car+no-car"}, "an edit is named twice"),
        ({"prompt": "a", "edit": "no-car", "strength": "much"}, "could not convert"),
        ({"prompt": "a", "edit": "no-car", "strength": "inf"}, "strength is inf, expected a finite number"),
        ({"prompt": "a", "seed": -1}, "seed is -1, expected an integer"),
        ({"prompt": "a", "seed": 2**63}, r"seed is \d+, expected an integer"),
        ({"prompt": "a", "seed": 1.5}, "seed is 1.5, expected an integer"),
    ],
)
def test_rows_that_are_none(edits, tmp_path, row, message) -> None:
    worker = PictureWorker(run_in(tmp_path, edits))
    good = {"prompt": "a car", "edit": "", "strength": "", "seed": ""}
    batch = {name: [good[name], row.get(name, "")] for name in good}
    with pytest.raises(ValueError, match=message):
        worker(batch)
    assert not list(tmp_path.rglob("*.png"))


def test_runs_that_cannot_be(edits, tmp_path) -> None:
    run = run_in(tmp_path, edits)
    PictureWorker(run)({"prompt": ["a car"], "seed": [1]})
    with pytest.raises(ValueError, match=r"has pictures with seed 0, and this run has 1: use another folder"):
        PictureWorker(run_in(tmp_path, edits, seed=1))
    other = PictureRun("zoo:emoji", str(tmp_path), generation={"num_inference_steps": 3})
    with pytest.raises(ValueError, match="has pictures with generation"):
        other.begin()
    PictureRun("zoo:emoji", str(tmp_path), None, GENERATION, {"device": "cuda"}).begin()  # draws the same
    with pytest.raises(ValueError, match="but the run has no edit_dir"):
        PictureWorker(run_in(tmp_path))({"prompt": ["a"], "edit": ["no-car"]})
    with pytest.raises(NotADirectoryError, match="expected one whose subfolders hold edits"):
        run_in(tmp_path / "new", tmp_path / "nowhere").begin()
    with pytest.raises(ValueError, match="batch_size is 0"):
        PictureWorker(run, batch_size=0)
    with pytest.raises(ValueError, match="model and output_dir must be given"):
        PictureRun("", "x")
    model = tmp_path / "model.json"
    fingerprint = picture_worker.read_json(model)
    write_json(model, {**fingerprint, "samples": [2 * sample for sample in fingerprint["samples"]]})
    with pytest.raises(ValueError, match="was made for another model"):
        PictureWorker(run)({"prompt": ["a dog"], "seed": [1]})


def write_table(path, count):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "edit", "strength", "seed"])
        for i in range(count):
            writer.writerow(["a car", ("", "no-car", "no-cat", "no-car+no-cat")[i % 4], "", i])


def example(table, folder, edits, *more):
    command = [
        sys.executable,
        EXAMPLE,
        table,
        "-o",
        folder,
        "--edit-dir",
        edits,
        "--steps",
        2,
        "--batch-size",
        2,
        *more,
    ]
    paths = [str(EXAMPLE.parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def pictures(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.png") if is_whole(path)}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_run_that_is_killed_goes_on(engine, edits, tmp_path) -> None:
    if engine == "ray":
        pytest.importorskip("ray")
    table, count = tmp_path / "table.csv", 40
    write_table(table, count)
    killed = example(table, tmp_path / "out", edits, "--engine", engine)
    deadline = time.monotonic() + 120
    while len(pictures(tmp_path / "out")) < 3 and time.monotonic() < deadline and killed.poll() is None:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    before = pictures(tmp_path / "out")
    assert 3 <= len(before) < count
    again = example(table, tmp_path / "out", edits, "--engine", engine)
    said, _ = again.communicate(timeout=300)
    found = re.search(rf"{count} rows, (\d+) pictures to draw", said)
    assert again.returncode == 0 and found is not None, said
    # Ray's actors outlive the process by a moment, and draw on.
    assert int(found[1]) == count - len(before) if engine == "local" else int(found[1]) <= count - len(before)
    after = pictures(tmp_path / "out")
    assert len(after) == count and all(after[path] == time_of for path, time_of in before.items())
    whole = example(table, tmp_path / "whole", edits, "--engine", engine)
    assert whole.wait(300) == 0
    for path in after:
        other = tmp_path / "whole" / path.relative_to(tmp_path / "out")
        assert abs(levels(path) - levels(other)).max() <= 1
    index = list(csv.DictReader((tmp_path / "out" / "index.csv").open(encoding="utf-8")))
    assert len(index) == count and all((tmp_path / "out" / row["path"]).is_file() for row in index)
    idle = example(table, tmp_path / "out", edits, "--engine", engine)
    assert "0 pictures to draw" in idle.communicate(timeout=300)[0]
