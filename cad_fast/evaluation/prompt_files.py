"""Prompt sets in files: one form for everybody's own, CSV or JSON, and readers for the published ones."""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import MAX_JSON, read_json
from .prompts import LARGEST_SEED, LabelledPrompt, PromptSet, unknown

PROMPT, SEED = "prompt", "seed"
MOST_SHOWN = 20  # of a column's values, in an error
CANVAS_TEMPLATE = "A {object} image in {style} style."


@dataclass(frozen=True)
class Row:
    """One row of a CSV file: its cells by column, and where it stands."""

    path: Path
    line: int
    cells: dict[str, str]

    def error(self, column: str, reason: str) -> ValueError:
        return ValueError(f"{self.path}, line {self.line}, column {column!r}: {reason}")

    def text(self, column: str) -> str:
        """The cell of ``column``. Raises ValueError naming line and column when it is empty."""
        value = self.cells[column].strip()
        if not value:
            raise self.error(column, "is empty")
        return value

    def seed(self, column: str) -> int:
        """The cell of ``column`` as a seed. Raises ValueError naming line and column when it is none."""
        value = self.text(column)
        if not value.isascii() or not value.isdigit() or len(value) > 20 or int(value) > LARGEST_SEED:
            raise self.error(column, f"is {value[:40]!r}, expected a whole number from 0 to 2^63 - 1")
        return int(value)


def _csv_rows(path: Path) -> tuple[list[str], list[Row]]:
    """The columns of a CSV file and its rows; blank lines are left out.

    Raises FileNotFoundError, or ValueError naming the file, the line, and where it can the column that is wrong.
    """
    with path.open("rb") as file:
        data = file.read(MAX_JSON + 1)
    if len(data) > MAX_JSON:
        raise ValueError(f"{path} is larger than {MAX_JSON} bytes, which is more than prompts need")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: is not UTF-8: {error.reason}") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    records = _records(path, reader)
    line, columns = next(records, (1, []))
    _check_columns(path, line, columns)
    rows = []
    for line, cells in records:
        if len(cells) != len(columns):
            expected = f"expected {len(columns)}, one for each of {', '.join(columns)}"
            raise ValueError(f"{path}, line {line}, column {len(cells)}: the line has {len(cells)} cells, {expected}")
        rows.append(Row(path, line, dict(zip(columns, cells, strict=True))))
    return columns, rows


def _records(path: Path, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """The line on which each record of a CSV file starts, and its cells."""
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{path}, line {line}: is not valid CSV: {error}") from error
        if cells is None:
            return
        if cells:
            yield line, cells


def _check_columns(path: Path, line: int, columns: Sequence[str]) -> None:
    if not columns:
        raise ValueError(f"{path}, line 1: is empty, expected the names of the columns")
    for i, name in enumerate(columns):
        if columns.index(name) != i:
            raise ValueError(f"{path}, line {line}, column {i + 1}: {name!r} comes twice")


def _first_of(path: Path, columns: Sequence[str], names: Sequence[str], *, needed: bool) -> str | None:
    found = next((name for name in names if name in columns), None)
    if found is None and needed:
        wanted = " or ".join(map(repr, names))
        raise ValueError(f"{path}, line 1: no column {wanted}; it has: {', '.join(map(repr, columns))}")
    return found


def _own_csv(path: Path) -> list[LabelledPrompt]:
    columns, rows = _csv_rows(path)
    _first_of(path, columns, (PROMPT,), needed=True)
    axes = [name for name in columns if name not in (PROMPT, SEED)]
    if not axes:
        raise ValueError(f"{path}, line 1: no column of labels besides {PROMPT!r}, such as 'concept'")
    for name in axes:
        if not name.strip():
            raise ValueError(f"{path}, line 1, column {columns.index(name) + 1}: has no name")
    return [
        LabelledPrompt(
            row.text(PROMPT),
            {axis: row.text(axis) for axis in axes},
            row.seed(SEED) if SEED in columns and row.cells[SEED].strip() else None,
        )
        for row in rows
    ]


@dataclass(frozen=True)
class PublishedColumns:
    """The columns of a published set that are read: of each kind the first that the file has."""

    prompt: tuple[str, ...]
    seed: tuple[str, ...] = ()

    def read(self, path: Path, where: Mapping[str, str]) -> list[tuple[str, int | None]]:
        """Texts and seeds of the rows in which each column of ``where`` is, or lists with commas, that value."""
        columns, rows = _csv_rows(path)
        prompt = _first_of(path, columns, self.prompt, needed=True)
        seed = _first_of(path, columns, self.seed, needed=False)
        assert prompt is not None
        for column, value in where.items():
            if column not in columns:
                raise ValueError(f"{path}, line 1: {unknown('column', column, columns)}")
            known = sorted({each for row in rows for each in _listed(row.cells[column])})
            if value not in known:
                shown = known if len(known) <= MOST_SHOWN else difflib.get_close_matches(value, known, MOST_SHOWN)
                raise ValueError(f"{path}, column {column!r}: {unknown('value', value, shown)}")
            rows = [row for row in rows if value in _listed(row.cells[column])]
        return [(row.text(prompt), None if seed is None else row.seed(seed)) for row in rows]


def _listed(cell: str) -> list[str]:
    return [each.strip() for each in cell.split(",")]


def _coco(path: Path, where: Mapping[str, str]) -> list[tuple[str, int | None]]:
    """COCO's captions, as their JSON or as CSV: of JSON the first caption of each picture."""
    if path.suffix.lower() == ".csv":
        return PublishedColumns(("prompt", "caption"), ("evaluation_seed",)).read(path, where)
    if where:
        raise ValueError(f"{path} is JSON: where is for the columns of CSV files")
    annotations = read_json(path).get("annotations")
    if not isinstance(annotations, list):
        raise ValueError(f"{path} has no list 'annotations', which COCO's captions have")
    first: dict[int, tuple[int, str]] = {}
    for i, entry in enumerate(annotations):
        if not isinstance(entry, dict):
            raise ValueError(f"{path}: annotations[{i}] is {entry!r:.80}, expected an object")
        for key, kind in (("image_id", int), ("id", int), ("caption", str)):
            if not isinstance(entry.get(key), kind) or entry[key] == "":
                raise ValueError(f"{path}: annotations[{i}].{key} is {entry.get(key)!r:.80}, expected {kind.__name__}")
        candidate = (entry["id"], entry["caption"])
        first[entry["image_id"]] = min(candidate, first.get(entry["image_id"], candidate))
    return [(caption.strip(), None) for _, (_, caption) in sorted(first.items())]


Reader = Callable[[Path, Mapping[str, str]], list[tuple[str, int | None]]]
PUBLISHED: dict[str, Reader] = {
    "i2p": PublishedColumns((PROMPT,), ("sd_seed", "evaluation_seed")).read,
    "ring-a-bell": PublishedColumns((PROMPT,), ("evaluation_seed",)).read,
    "mma-diffusion": PublishedColumns(("adv_prompt", "adversarial_prompt")).read,
    "coco": _coco,
}
FORMS = (*PUBLISHED, "unlearn-canvas")


def read_prompts(
    path: str | Path,
    form: str | None = None,
    *,
    labels: Mapping[str, str] | None = None,
    where: Mapping[str, str] | None = None,
) -> PromptSet:
    """Read a prompt set from a file.

    Without ``form`` the file is in the form of this package: CSV (``.csv``) with the columns ``prompt``, one for each
    axis of labels and, if wanted, ``seed``; or JSON as ``PromptSet.from_json`` reads it.

    Args:
        path: the file.
        form: that of a published set: ``i2p`` (arXiv 2211.05105), ``ring-a-bell`` (2310.10012), ``mma-diffusion``
            (2311.17516) or ``coco`` (captions, JSON or CSV), each with its own columns; ``unlearn-canvas``
            (2402.11846): JSON with ``styles`` and ``objects``, of which every pair makes a prompt.
        labels: what all pictures of a published set should be recognised as, per axis, such as {"nudity": "nudity"}.
            By default {"set": form}; the grid of ``unlearn-canvas`` has its own.
        where: of a published CSV only the rows with these values, such as {"categories": "sexual"}. A cell may list
            several, with commas.

    Returns:
        The prompts. Seeds that the file has belong to the first picture of each prompt.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is malformed; the message names the file, and the line and column of a CSV.
    """
    path = Path(path)
    if form is not None and form not in FORMS:
        raise ValueError(unknown("form of prompts", form, FORMS))
    if form not in PUBLISHED:
        for name, value in (("labels", labels), ("where", where)):
            if value:
                raise ValueError(f"{name} goes with the form of a published set: {', '.join(PUBLISHED)}")
    try:
        if form is None and path.suffix.lower() != ".csv":
            return PromptSet.from_json(path)
        if form is None:
            prompts = _own_csv(path)
        elif form == "unlearn-canvas":
            prompts = _canvas(path)
        else:
            read = PUBLISHED[form](path, where or {})
            prompts = [LabelledPrompt(text, dict(labels or {"set": form}), seed) for text, seed in read]
        if not prompts:
            raise ValueError(f"{path}: there are no prompts")
    except IsADirectoryError as error:
        raise ValueError(f"{path} is a folder, expected a file of prompts") from error
    return PromptSet(prompts)


def _canvas(path: Path) -> list[LabelledPrompt]:
    """UnlearnCanvas' grid: its prompts have spaces for the underscores of the names."""
    value = read_json(path)
    names = {key: value.get(key) for key in ("styles", "objects")}
    for key, entries in names.items():
        if not isinstance(entries, list) or not entries or not all(isinstance(e, str) and e.strip() for e in entries):
            raise ValueError(f"{path}: {key!r} is {entries!r:.80}, expected a list of names")
    return [
        LabelledPrompt(
            CANVAS_TEMPLATE.format(object=entry, style=style.replace("_", " ")), {"object": entry, "style": style}
        )
        for style in names["styles"] or ()
        for entry in names["objects"] or ()
    ]
