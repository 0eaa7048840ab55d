"""Thousands of prompts, each under edits of its own, drawn into a folder by the workers of a batch engine.

A worker is given batches of rows and knows nothing of the engine: ``ray.data.Dataset.map_batches`` takes it as it is,
and so does a loop. A picture's file name follows from what is drawn, so that a run that was killed goes on where it
was.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ..components.fingerprint import Fingerprint
from ..diffusion.context import plain_tensors, silent
from ..diffusion.denoisers import denoiser_of
from ..diffusion.generation import Generation
from ..edits.data import check_edit_name
from ..edits.files.config import CONFIG_NAME
from ..edits.files.store import read_config
from ..edits.manager import EditManager
from ..edits.rows.spread import BASE
from ..evaluation.drawing import draw, image_seed
from ..files import parse_json, read_json, require_writable_folder, write_json, write_png
from ..loading import load_pipeline

RUN_NAME = "pictures.json"
MODEL_NAME = "model.json"
_PNG_BEGINS, _PNG_ENDS = b"\x89PNG\r\n\x1a\n", b"\x00\x00\x00\x00IEND\xaeB`\x82"


class Row(NamedTuple):
    """One picture: a prompt, its edits as (name, strength), and a seed."""

    prompt: str
    edits: tuple[tuple[str, float], ...]
    seed: int


@dataclass(frozen=True)
class PictureRun:
    """What all pictures of a folder share; small, and the same for every worker.

    Args:
        model: what ``cad_fast.load_pipeline`` takes: ``zoo:emoji``, a folder, or a Hub repository.
        output_dir: the folder of the pictures, which all workers see.
        edit_dir: a folder whose subfolders are edits, named in the rows by their subfolders. None for no edits.
        generation: what the pipeline's call takes, such as ``num_inference_steps``.
        loading: further arguments of ``load_pipeline``, such as ``dtype``.
        seed: of rows that have none.

    Raises:
        ValueError: an argument is missing or out of range. The message names it.
    """

    model: str
    output_dir: str
    edit_dir: str | None = None
    generation: dict[str, Any] = field(default_factory=dict)
    loading: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.model or not self.output_dir:
            raise ValueError("model and output_dir must be given")
        Generation.of(**self.generation)
        # Where it runs does not decide what is drawn, and batches neither.
        parse_json(json.dumps(self._settings(), allow_nan=False), "generation and loading")

    def _settings(self) -> dict[str, Any]:
        loading = {name: value for name, value in self.loading.items() if name not in ("device", "offload")}
        return {"model": self.model, "generation": self.generation, "loading": loading, "seed": self.seed}

    def begin(self) -> PictureRun:
        """Make the folder, or look at whether this run continues what is there; returns this run.

        Raises:
            ValueError: the folder's pictures are of another run. The message names what differs.
            NotADirectoryError, PermissionError: a folder cannot be used. The message names it.
        """
        folder = require_writable_folder(self.output_dir)
        if self.edit_dir is not None and not Path(self.edit_dir).is_dir():
            raise NotADirectoryError(f"{self.edit_dir} is no folder: expected one whose subfolders hold edits")
        settings, path = self._settings(), folder / RUN_NAME
        if not path.exists():
            write_json(path, settings)
        before = read_json(path)
        for name, value in settings.items():
            if before.get(name) != value:
                raise ValueError(
                    f"{folder} has pictures with {name} {before.get(name)!r}, and this run has {value!r}: use another "
                    "folder, or the same settings"
                )
        return self

    def row(self, row: Mapping[str, Any]) -> Row:
        """Check a row of a table.

        Args:
            row: ``prompt``; ``edit``, a name, several with ``+`` between them, or empty for none; ``strength`` (1), one
                for all of them; ``seed``, by default one that follows from the prompt and the run's seed. Other
                columns do not count. Empty is None, "" or NaN.

        Raises:
            ValueError: a value is missing or none of these. The message quotes the row.
        """
        prompt = row.get("prompt")
        if not isinstance(prompt, str) or not prompt:
            raise ValueError(f"the row {dict(row)!r} has no prompt")
        edit, strength, seed = (None if _empty(row.get(name)) else row[name] for name in ("edit", "strength", "seed"))
        try:
            factor = 1.0 if strength is None else float(strength)
            number = image_seed(self.seed, prompt, 0) if seed is None else int(seed)
            names = [] if edit is None or edit == BASE else [check_edit_name(name) for name in str(edit).split("+")]
            if not math.isfinite(factor):
                raise ValueError(f"strength is {factor}, expected a finite number")
            if (isinstance(seed, float) and not seed.is_integer()) or not 0 <= number < 2**63:
                raise ValueError(f"seed is {seed}, expected an integer of 0 to 2^63-1")
            if len(set(names)) < len(names):
                raise ValueError("an edit is named twice")
        except (TypeError, ValueError) as error:
            raise ValueError(f"the row {dict(row)!r}: {error}") from error
        return Row(prompt, tuple((name, factor) for name in sorted(names)), number)

    def digest(self, name: str) -> str:
        """Return the digest of an edit, which its config tells.

        Raises:
            ValueError: there is no such edit in ``edit_dir``. The message names those there are.
        """
        if self.edit_dir is None:
            raise ValueError(f"a row names the edit {name!r}, but the run has no edit_dir")
        folder = Path(self.edit_dir) / check_edit_name(name)
        if not (folder / CONFIG_NAME).is_file():
            known = sorted(path.parent.name for path in Path(self.edit_dir).glob(f"*/{CONFIG_NAME}"))
            raise ValueError(f"there is no edit {name!r} in {self.edit_dir}; there are: {', '.join(known) or 'none'}")
        return read_config(folder).digest

    def path(self, row: Row, digests: Mapping[str, str]) -> Path:
        """Return where the picture of a row lies. It depends on the prompt, the seed, and what the edits hold."""
        edits = sorted((digests[name], strength) for name, strength in row.edits if strength != 0)
        text = json.dumps([row.prompt, edits, row.seed])
        name = hashlib.sha256(text.encode()).hexdigest()[:32]
        return Path(self.output_dir) / name[:2] / f"{name}.png"


class PictureWorker:
    """Draws batches of rows that are not drawn yet. The model is loaded when the first picture is needed.

    Args:
        run: what all workers have in common.
        batch_size: how many pictures are drawn at once.
        device: where; None for what ``run.loading`` says.

    Raises:
        ValueError, NotADirectoryError, PermissionError: as ``PictureRun.begin``.
    """

    def __init__(self, run: PictureRun, batch_size: int = 8, device: str | None = None) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        self.run, self.batch_size = run.begin(), batch_size
        self._device = {} if device is None else {"device": device}
        self._digests: dict[str, str] = {}
        self._manager: EditManager | None = None
        self._generation: Generation | None = None

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Draw a batch given as columns, as batch engines give it.

        Returns:
            The columns, with ``path`` (of each picture, within ``output_dir``) and ``drawn`` (False if it was there).

        Raises:
            ValueError: a row is none, or names an edit that is not there. Nothing of the batch is drawn.
        """
        columns = {name: [_plain(value) for value in values] for name, values in batch.items()}
        count = len(next(iter(columns.values()), ()))
        rows = [self.run.row({name: values[i] for name, values in columns.items()}) for i in range(count)]
        before = self._paths(rows)
        absent = {path for path in before if not is_whole(path)}
        self.draw(rows)
        names = [path.relative_to(self.run.output_dir).as_posix() for path in before]
        return {**columns, "path": names, "drawn": [path in absent for path in before]}

    def draw(self, rows: Iterable[Row]) -> int:
        """Draw the pictures of the rows that are not there; returns how many were drawn.

        Raises:
            ValueError: an edit is not there or does not fit the model, or the model is not that of the folder.
        """
        listed = list(rows)
        wanted = {path: row for path, row in zip(self._paths(listed), listed, strict=True) if not is_whole(path)}
        # Rows with the same edits side by side are cheaper.
        waiting = sorted(wanted.items(), key=lambda item: (item[1].edits, item[0]))
        for start in range(0, len(waiting), self.batch_size):
            part = waiting[start : start + self.batch_size]
            for (path, _), image in zip(part, self._images([row for _, row in part]), strict=True):
                write_png(path, image)
        return len(waiting)

    def _paths(self, rows: Sequence[Row]) -> list[Path]:
        for name in {name for row in rows for name, _ in row.edits} - self._digests.keys():
            self._digests[name] = self.run.digest(name)
        return [self.run.path(row, self._digests) for row in rows]

    def _images(self, rows: Sequence[Row]) -> list[Image.Image]:
        manager = self._loaded()
        assert self._generation is not None, "it is resolved when the model is loaded"
        for name in {name for row in rows for name, _ in row.edits} - set(manager.row_edits.names):
            assert self.run.edit_dir is not None, "their digests were read there"
            manager.load_edit(Path(self.run.edit_dir) / name, name)
            if manager.row_edits.edit(name).digest() != self._digests[name]:
                raise ValueError(f"the edit {name!r} has changed while it was being used: start the run again")
        prompts, seeds = [row.prompt for row in rows], [row.seed for row in rows]
        names = [[name for name, _ in row.edits] or BASE for row in rows]
        strengths: list[Any] = [[strength for _, strength in row.edits] for row in rows]
        edited = manager.per_prompt(names, strengths) if any(row.edits for row in rows) else nullcontext()
        with silent(manager.pipeline), plain_tensors(), edited:
            return draw(manager.pipeline, prompts, seeds, self._generation)

    def _loaded(self) -> EditManager:
        """The manager of the model, which is loaded now if it was not, and must be that of the folder."""
        if self._manager is None:
            pipeline = load_pipeline(self.run.model, **{**self.run.loading, **self._device})
            self._generation = Generation.of(**self.run.generation).resolved(pipeline)
            fingerprint = Fingerprint.of(denoiser_of(pipeline))
            path = Path(self.run.output_dir) / MODEL_NAME
            if path.exists():
                Fingerprint.from_dict(read_json(path)).require_same(fingerprint, f"the folder {self.run.output_dir}")
            else:
                write_json(path, fingerprint.to_dict())
            self._manager = EditManager(pipeline)
        return self._manager


def is_whole(path: Path) -> bool:
    """Tell whether a PNG file is there from its beginning to its end."""
    try:
        with path.open("rb") as file:
            begins = file.read(len(_PNG_BEGINS))
            if file.seek(0, os.SEEK_END) < len(_PNG_BEGINS) + len(_PNG_ENDS):
                return False
            file.seek(-len(_PNG_ENDS), os.SEEK_END)
            return begins == _PNG_BEGINS and file.read() == _PNG_ENDS
    except FileNotFoundError:
        return False


def remaining(run: PictureRun, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a table whose pictures are not there, each picture once. No model is loaded.

    Raises:
        ValueError: as ``PictureRun.row`` and ``PictureRun.digest``.
    """
    digests: dict[str, str] = {}
    left: dict[Path, dict[str, Any]] = {}
    for given in rows:
        row = run.row(given)
        for name, _ in row.edits:
            if name not in digests:
                digests[name] = run.digest(name)
        path = run.path(row, digests)
        if path not in left and not is_whole(path):
            left[path] = dict(given)
    return list(left.values())


def _empty(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _plain(value: Any) -> Any:
    """A value of a column, which numpy and its kin wrap."""
    return value.item() if hasattr(value, "item") else value
