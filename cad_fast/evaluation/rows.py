"""Results as flat rows, one number each: ready for pandas, written as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..files import write_text
from .intervals import Interval

NO_EDIT = "no edit"
# What every row has. ``of`` is a concept, a group of them or an attack; ``by`` is what judged, measured or compared.
COLUMNS = ("metric", "axis", "of", "by", "edit", "strength", "value", "lower", "upper", "n")


def row(
    metric: str,
    of: str,
    value: float | None,
    n: int,
    *,
    interval: Interval | None = None,
    by: str | None = None,
    axis: str | None = None,
    edit: str | None = None,
    strength: float | None = None,
) -> dict[str, Any]:
    """One number with what it is of. Without ``edit`` it is of the model as it is."""
    lower, upper = (None, None) if interval is None else interval
    return {
        "metric": metric,
        "axis": axis,
        "of": of,
        "by": by,
        "edit": NO_EDIT if edit is None else edit,
        "strength": strength,
        "value": value,
        "lower": lower,
        "upper": upper,
        "n": n,
    }


def csv_text(rows: Iterable[dict[str, Any]], columns: Sequence[str] = COLUMNS) -> str:
    """The rows as CSV, with what is None left empty. Raises ValueError for a row with other columns."""
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def write_csv(path: str | Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write rows as CSV; returns its path."""
    return write_text(path, csv_text(rows))
