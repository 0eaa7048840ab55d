"""Files appear whole or not at all, and damaged ones are named."""

from __future__ import annotations

import os

import pytest
import torch

from cad_fast import files


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
