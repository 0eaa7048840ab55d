"""``python -m bench.zoo_together --output DIR``: several objects of the demo model erased at once, by one edit each.

The edits are those of the published tables, made one by one; they act together on every row, through an EditManager.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cad_fast.demo.study import CROSS_ATTENTION, Study
from cad_fast.edits import EditManager
from cad_fast.files import require_writable_folder, write_bytes, write_json
from cad_fast.report.sheets import before_after_sheet

OBJECTS = ("car", "clock", "moon")
RATIO = 0.06


@dataclass
class Together:
    """Edits of a manager as what ``evaluate`` takes for an edit."""

    manager: EditManager
    names: Sequence[str]

    @property
    def name(self) -> str:
        return " + ".join(self.names)

    @contextmanager
    def applied(self, pipeline: Any, strength: float = 1.0) -> Iterator[None]:
        self.manager.set_edits(list(self.names), edit_weights=strength)
        try:
            yield
        finally:
            self.manager.set_edits([])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.zoo_together", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for edits, figures.json and sheet.png")
    parser.add_argument("--objects", nargs="+", default=list(OBJECTS))
    parser.add_argument("--per-concept", type=int, default=16)
    arguments = parser.parse_args()
    folder = require_writable_folder(arguments.output)
    study = Study(per_concept=arguments.per_concept)
    scores = study.attribute()
    manager = EditManager(study.pipeline)
    for obj in arguments.objects:
        edit = study.erased(scores, obj, RATIO, CROSS_ATTENTION)
        edit.save_pretrained(folder / "edits" / edit.name)
        manager.load_edit(edit)
    before = study.evaluate(keep_images=True)
    together = Together(manager, manager.row_edits.names)
    comparison, after = study.compare(before, together, arguments.objects, keep_images=True)
    print(comparison.table())
    write_json(folder / "figures.json", comparison.to_dict())
    buffer = io.BytesIO()
    before_after_sheet(before, after, target=arguments.objects, columns=4).save(buffer, format="PNG", optimize=True)
    write_bytes(folder / "sheet.png", buffer.getvalue())


if __name__ == "__main__":
    main()
