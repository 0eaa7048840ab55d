"""Files appear whole or not at all, and damaged ones are named."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image

from cad_fast import ComponentSpace, Edit, Scores, files
from cad_fast.attribution.scores import load_many, save_many
from cad_fast.components.fingerprint import Fingerprint
from cad_fast.diffusion.generation import Generation
from cad_fast.recording.call import DenoiserCall
from cad_fast.recording.data import Recording


def test_json_round_trip(tmp_path) -> None:
    value = {"name": "Künstler", "numbers": [1, 2.5, None]}
    path = files.write_json(tmp_path / "new" / "a.json", value)
    assert files.read_json(path) == value
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch) -> None:
    path = files.write_text(tmp_path / "a.txt", "old")
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(path, {"x": float("nan")})

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_bytes(path, b"new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("content", "message"), [(b'{"a": 1', "not valid JSON"), (b"\xff\xfe", "not valid JSON"), (b"[1]", "JSON list")]
)
def test_damaged_json(tmp_path, content: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.json .*{message}"):
        files.read_json(path)


def test_tensors_round_trip(tmp_path) -> None:
    tensors = {
        "strided": torch.arange(12.0).view(3, 4).t(),
        "bf16": torch.randn(3).bfloat16(),
        "scalar": torch.tensor(3),
        "none": torch.zeros(0, 5),
        "mask": torch.tensor([True, False]),
    }
    path = files.write_tensors(tmp_path / "a.safetensors", tensors, {"list": [1, "two"]})
    read, metadata = files.read_tensors(path)
    assert metadata == {"list": [1, "two"]}
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor)


def test_damaged_tensors(tmp_path) -> None:
    path = files.write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(100)}, {})
    data = path.read_bytes()
    for damaged in (data[:-1], data[:20], b"", b"junk" * 10):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.safetensors is truncated or not a safetensors file"):
            files.read_tensors(path)
    with pytest.raises(FileNotFoundError):
        files.read_tensors(tmp_path / "none")


def test_tensors_of_others_are_refused(tmp_path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "a")
    with pytest.raises(ValueError, match="was not written by cad_fast"):
        files.read_tensors(tmp_path / "a")
    save_file({"x": torch.zeros(1)}, tmp_path / "b", metadata={"cad_fast": "{"})
    with pytest.raises(ValueError, match="damaged header"):
        files.read_tensors(tmp_path / "b")


def test_require_writable_folder(tmp_path) -> None:
    folder = files.require_writable_folder(tmp_path / "a" / "b")
    assert folder.is_dir() and not list(folder.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file"):
        files.require_writable_folder(tmp_path / "file")
    with pytest.raises(PermissionError, match="cannot be written"):
        files.require_writable_folder(tmp_path / "file" / "below")


@contextlib.contextmanager
def full_disk(room: int = 4096):
    """As on a full disk: no file can grow beyond ``room`` bytes."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def state_of(folder):
    """{file: its bytes} of everything in a folder, hidden files too."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def small_scores(seed: int) -> Scores:
    torch.manual_seed(seed)
    space = ComponentSpace.of(torch.nn.Sequential(torch.nn.Linear(64, 64)), "weight", "all")
    return Scores(torch.randn(space.n), space, {"concept": "cat"})


def save_scores(folder, seed):
    save_many({"dog": small_scores(0), "cat": small_scores(seed)}, folder)


def save_edit(folder, seed):
    # The tensors have room, the config has not.
    indices = torch.arange(100 + seed)
    Edit.from_indices("edit", small_scores(0).space, indices, 0.0, {"concept": "x" * 8000 * seed}).save_pretrained(
        folder
    )


def save_recording(folder, seed):
    calls = [
        DenoiserCall(i, 1.0, {"sample": torch.randn(1, 4, 2, 2)}, "sample", torch.randn(1, 4, 2, 2)) for i in range(2)
    ]
    Recording(
        calls, ["a cat" * 3000 * seed or "a cat"], [seed], Generation(num_inference_steps=2), {}, None,
        Fingerprint("Net", "abc", (0.5,)), [Image.new("RGB", (4, 4))],
    ).save(folder)  # fmt: skip


@pytest.mark.parametrize("save", [save_scores, save_edit, save_recording])
def test_a_full_disk_is_named_and_what_was_there_stays(tmp_path, save) -> None:
    save(tmp_path, 0)
    before = state_of(tmp_path)
    with full_disk(), pytest.raises(OSError, match=rf"{tmp_path}/\S+ cannot be written: File too large") as caught:
        save(tmp_path, 1)
    assert caught.value.errno == errno.EFBIG
    assert state_of(tmp_path) == before
    save(tmp_path, 1)
    assert state_of(tmp_path) != before


def test_scores_of_two_saves_are_told_apart(tmp_path) -> None:
    """A process that is killed as it renames leaves some files of each."""
    first, second = tmp_path / "first", tmp_path / "second"
    save_many({"cat": small_scores(0), "dog": small_scores(1), "car": small_scores(2)}, first)
    save_many({"dog": small_scores(1), "cat": small_scores(0)}, second)
    assert torch.equal(Scores.load(first / "dog").values, Scores.load(second / "dog").values)
    (second / "00000.safetensors").rename(first / "00000.safetensors")
    with pytest.raises(ValueError, match=r"00000\.safetensors belongs to another save than concepts\.json"):
        Scores.load(first / "cat")
    with pytest.raises(ValueError, match=r"00000\.safetensors belongs to another save"):
        load_many(first)
    assert torch.equal(Scores.load(first / "car").values, small_scores(2).values)
    save_many({"cat": small_scores(3)}, second)
    (second / "00000.safetensors").rename(first / "00000.safetensors")  # the right concept, of another save
    with pytest.raises(ValueError, match="are of different saves: save them again"):
        load_many(first)


def test_permissions_are_those_of_the_umask(tmp_path) -> None:
    before = os.umask(0o027)
    try:
        save_edit(tmp_path / "a", 0)
        save_scores(tmp_path / "b", 0)
        save_recording(tmp_path / "c", 0)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert len(modes) == 8 and set(modes.values()) == {0o640}, modes


def test_parts_follow_no_link_and_have_names_that_nobody_guesses(tmp_path, monkeypatch) -> None:
    names = []
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for _ in range(2):
        files.write_whole(tmp_path / "a", lambda part: names.append(part.name) or part.write_text("x"))
    assert len(set(names)) == 2 and all(len(name) > 30 for name in names)
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "0" * 16)  # a name that was guessed
    files.part_name(tmp_path / "a").symlink_to(victim)
    with pytest.raises(FileExistsError, match="a cannot be written: File exists"):
        files.write_text(tmp_path / "a", "mine")
    assert victim.read_text() == "precious"
    (tmp_path / "b").symlink_to(victim)  # the target itself may be a link: it is replaced
    monkeypatch.undo()
    files.write_text(tmp_path / "b", "mine")
    assert victim.read_text() == "precious" and not (tmp_path / "b").is_symlink()


def test_parts_of_processes_that_have_ended_are_removed(tmp_path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mine = files.part_name(tmp_path / "a").name
    gone = mine.replace(f".{os.getpid()}.", f".{ended.pid}.")
    running = mine.replace(f".{os.getpid()}.", f".{os.getppid()}.")
    foreign = gone.replace(files._machine(), "0" * 8)
    (tmp_path / "folder").mkdir()
    for name in (gone, running, foreign, "other.part"):
        (tmp_path / "folder" / name).write_text("half")
    (tmp_path / "folder" / gone.replace(".a.", ".b.")).mkdir()
    files.write_text(tmp_path / "folder" / "a", "whole")
    assert {path.name for path in (tmp_path / "folder").iterdir()} == {running, foreign, "other.part", "a"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1e999}', "1e999 is too large a number"),
        ('{"a": -1e999}', "too large a number"),
        ('{"a": {"b": 1, "b": 2}}', "the key 'b' comes twice"),
        ('{"a": ' + "9" * 41 + "}", "an integer has 41 digits"),
        ('{"a": ' + "9" * 5000 + "}", "an integer has 5000 digits"),
        ("[" * 65 + "]" * 65, "nested too deeply, more than 64"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ("NaN", "NaN is not a JSON number"),
        ('{"' + "k" * 9999 + '": 1, "' + "k" * 9999 + '": 2}', "comes twice"),
    ],
)
def test_json_that_readers_might_take_differently(text, message) -> None:
    with pytest.raises(ValueError, match=f"x is not valid JSON: .*{message}") as caught:
        files.parse_json(text, "x")
    assert len(str(caught.value)) < 300


def test_json_that_is_fine() -> None:
    text = "[" * 64 + "]" * 64
    assert files.parse_json('{"a": [18446744073709551615, -1.5e300, 1e-999, {"a": {}}]}', "x")["a"][0] == 2**64 - 1
    assert files.parse_json(text, "x") is not None


def test_what_would_not_be_read_back_is_not_written(tmp_path) -> None:
    with pytest.raises(ValueError, match="an integer has 51 digits"):
        files.write_tensors(tmp_path / "a", {"x": torch.zeros(1)}, {"n": 10**50})
    assert not list(tmp_path.iterdir())
