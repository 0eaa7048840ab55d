"""The long jobs that are killed, and what must hold of their folders: at every moment, and at the end."""

from __future__ import annotations

import hashlib
import io
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from cad_fast.attribution.store import STATE_NAME
from cad_fast.files import read_json, read_tensors

from .watched import LOADED

# What may differ between two runs: how long something took, and the ids that tell saves apart.
APART = frozenset({"seconds", "save_id"})


@dataclass(frozen=True)
class Job:
    """One job, which works in a folder until all is there, and goes on with what lies there when it is run again.

    Attributes:
        name: of the job, in the report.
        run: does it in a folder, and returns an exit code. ``material`` has run before.
        material: makes once, in another folder, what ``run`` needs.
        together: reads the files of the folder that belong together, by a name for what they hold.
    """

    name: str
    run: Callable[[Path, Path], int]
    material: Callable[[Path], None] | None = None
    together: Callable[[Path], str] | None = None


def _command(name: str, arguments: str) -> Job:
    def run(folder: Path, material: Path) -> int:
        from cad_fast.cli import main

        command, *options = arguments.split()
        return main([command, "zoo:emoji", *options, "--quiet", "-o", str(folder)])

    return Job(name, run)


def _attribute(method: str, arguments: str, name: str | None = None) -> Job:
    return _command(name or method, f"attribute --method {method} {arguments} --resume")


def _saved_over_each_other(name: str, make: Callable[[], list[Any]], save: str, load: Callable[[Path], Any]) -> Job:
    """A job that saves two things over each other: what is loaded is always one of them, or it is refused."""

    def material(folder: Path) -> None:
        for number, value in enumerate(make()):
            getattr(value, save)(folder / str(number))

    def run(folder: Path, material: Path) -> int:
        both = [load(material / str(number)) for number in range(2)]
        sys.audit(LOADED)
        for number in range(8):
            getattr(both[number % 2], save)(folder)
        return 0

    return Job(name, run, material, lambda folder: fingerprint(load(folder)))


class ManyScores(dict):
    """Scores of several concepts, with the methods of what is saved and loaded."""

    def save(self, folder: Path) -> None:
        from cad_fast.attribution.scores import save_many

        save_many(self, folder)

    @classmethod
    def load(cls, folder: Path) -> ManyScores:
        from cad_fast.attribution import load_many

        return cls(load_many(folder))


def _two_edits() -> list[Any]:
    import torch

    from cad_fast import ComponentSpace, Edit, zoo

    space = ComponentSpace.of(zoo.load(), "weight", "cross-attention-kv")
    return [Edit.from_indices("swapped", space, torch.arange(first, space.n, 3)) for first in (0, 1)]


def _two_recordings() -> list[Any]:
    import cad_fast
    from cad_fast import zoo

    pipeline = zoo.load()
    settings: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 3.0, "progress": False, "keep_images": True}
    return [cad_fast.record(pipeline, ["a cat", "a car"], seeds=seed, **settings) for seed in (0, 100)]


def _two_sets_of_scores() -> list[Any]:
    import torch

    from cad_fast import ComponentSpace, Scores, zoo

    space = ComponentSpace.of(zoo.load(), "head")
    concepts = {name: Scores(torch.randn(space.n), space, {"concept": name}) for name in ("cat", "car", "dog")}
    return [ManyScores(concepts), ManyScores({name: concepts[name] for name in ("dog", "cat")})]


def _edit_of(folder: Path) -> Any:
    from cad_fast import Edit

    return Edit.from_pretrained(folder)


def _recording_of(folder: Path) -> Any:
    from cad_fast.recording.data import Recording

    return Recording.load(folder)


def fingerprint(value: Any) -> str:
    """A name for what an edit, a recording or scores hold."""
    if isinstance(value, ManyScores):
        return str([(name, scores.concept, _hash(scores.values.numpy().tobytes())) for name, scores in value.items()])
    if hasattr(value, "digest"):
        return str(value.digest())
    parts = [value.latents.numpy().tobytes(), *(image.tobytes() for image in value.images)]
    return _hash(*parts, *(call.output.numpy().tobytes() for call in value.calls))


def _hash(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


KV = "--target-modules cross-attention-kv"
JOBS = (
    _attribute("gradient", f"--concept cat {KV} --samples 2 --steps 4 --rows-per-pass 1"),
    _attribute(
        "ablated_gradient",
        "--concept cat --kind neuron --fraction 0.25 --partitions 3 --samples 1 --steps 3 --rows-per-pass 4",
    ),
    _attribute(
        "second_order",
        "--concept cat --target-modules mid_block.*attn2.to_k --fraction 0.1 --samples 1 --steps 1 --rows-per-pass 2",
    ),
    _attribute(
        "regression",
        "--concept cat --kind head --ablations 48 --fraction 0.2 --draw bernoulli --samples 1 --steps 1 "
        "--rows-per-pass 4 --holdout 8",
    ),
    _attribute("exact", "--concept cat --kind head --samples 1 --steps 1 --rows-per-pass 2"),
    _attribute("sensitivity", "--concept cat --kind filter --samples 2 --steps 3 --rows-per-pass 1"),
    _attribute(
        "gradient", f"--concept cat car {KV} --samples 2 --steps 2 --rows-per-pass 1", "gradient of two concepts"
    ),
    _attribute(
        "exact", "--concept cat car --kind head --samples 1 --steps 1 --rows-per-pass 4", "exact of two concepts"
    ),
    _command(
        "budget",
        "budget --erase car --keep face=50 --ratios 0.03 --samples 1 --per-concept 2 --confirming 1 --steps 1",
    ),
    _saved_over_each_other("edits saved over each other", _two_edits, "save_pretrained", _edit_of),
    _saved_over_each_other("recordings saved over each other", _two_recordings, "save", _recording_of),
    _saved_over_each_other("scores saved over each other", _two_sets_of_scores, "save", ManyScores.load),
)


def content(path: Path) -> Any:
    """What a file holds, bit for bit, apart from ``APART``. Raises if it is not whole."""
    if path.suffix == ".safetensors":
        tensors, metadata = read_tensors(path)
        held = {name: (str(each.dtype), list(each.shape), each.numpy().tobytes()) for name, each in tensors.items()}
        return held, _comparable(metadata)
    if path.suffix == ".json":
        return _comparable(read_json(path))
    data = path.read_bytes()
    if path.suffix == ".png":
        Image.open(io.BytesIO(data)).load()
    elif path.suffix != ".md" or not data.endswith(b"\n"):
        raise ValueError(f"{path.name} is no file that a job leaves, or not whole")
    return data


def _comparable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _comparable(each) for key, each in value.items() if key not in APART}
    return [_comparable(each) for each in value] if isinstance(value, list) else value


def contents(folder: Path) -> dict[str, Any]:
    """``content`` of every file that has a final name, by its path in the folder; the state of a run is only opened."""
    held = {}
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        if path.name == STATE_NAME:
            _sound(path)
        elif path.suffix != ".part" and not path.name.startswith(f"{STATE_NAME}-"):
            held[str(path.relative_to(folder))] = content(path)
    return held


def progress(folder: Path) -> dict[str, int]:
    """How far each unfinished run below ``folder`` has come: its ablations, or the passes in its sums."""
    return {str(path.relative_to(folder)): _sound(path) for path in folder.rglob(STATE_NAME)}


def _sound(state: Path) -> int:
    """How far a run has come by a copy of its state with the journals. Raises if that is no sound database."""
    with tempfile.TemporaryDirectory() as name:
        for path in state.parent.glob(f"{STATE_NAME}*"):
            (Path(name) / path.name).write_bytes(path.read_bytes())
        database = sqlite3.connect(Path(name) / STATE_NAME)
        try:
            (verdict,) = database.execute("PRAGMA integrity_check").fetchone()
            tables = {table for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            counts, done = [], None
            if tables:
                counts = database.execute("SELECT count(*) FROM ablations GROUP BY number").fetchall()
                done = database.execute("SELECT value FROM run WHERE key = 'done'").fetchone()
        finally:
            database.close()
    if verdict != "ok" or len(set(counts)) > 1 or tables not in (set(), {"run", "ablations", "sums"}):
        raise ValueError(f"{state} is not sound: {verdict}, tables {sorted(tables)}, J per ablation {set(counts)}")
    return len(counts) or int(done[0] if done else 0)
