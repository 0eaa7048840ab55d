"""``python -m bench.zoo_tables --output DIR``: the figures that the documentation gives for the demo models.

Every comparison is saved as it is finished; a second run with the same settings goes on where the first stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cad_fast.demo.study import CROSS_ATTENTION, FEED_FORWARD, KEEP_WEIGHT, Study
from cad_fast.files import read_json, require_writable_folder, write_bytes, write_json, write_text
from cad_fast.report.plots import tradeoff_plot
from cad_fast.zoo import MODELS, OBJECTS, RARE_OBJECT, STYLES, load

MODEL_PER_CONCEPT = 36
# (modules, ratio), the most telling first.
ERASURES = (
    (CROSS_ATTENTION, 0.06),
    (FEED_FORWARD, 0.06),
    (CROSS_ATTENTION, 0.03),
    (CROSS_ATTENTION, 0.01),
    (FEED_FORWARD, 0.03),
    (FEED_FORWARD, 0.01),
)
STYLE_RATIO = 0.06
STYLE_PER_CONCEPT = 48
AMPLIFY_RATIOS = (0.003, 0.01, 0.03)
AMPLIFY_PER_CONCEPT = 96


class Tables:
    """Figures as JSON in a folder, each computed unless it is there."""

    def __init__(self, folder: Path, study: Study) -> None:
        self.folder, self.study = require_writable_folder(folder), study
        self._scores: dict[str, Any] = {}
        self._before: Any = None

    @property
    def scores(self) -> dict[str, Any]:
        """Scores of every object, computed on first use."""
        if not self._scores:
            self._scores = self.study.attribute()
        return self._scores

    @property
    def before(self) -> Any:
        """The model without an edit."""
        if self._before is None:
            self._before = self.study.evaluate()
        return self._before

    def stored(self, name: str, compute: Any) -> dict[str, Any]:
        """The content of ``name``.json, from ``compute()`` if there is none."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            write_json(path, compute())
        return read_json(path)

    def model(self) -> dict[str, Any]:
        """Accuracy of every object and style, without an edit."""
        return self.stored("model", lambda: self.study.evaluate(per_concept=MODEL_PER_CONCEPT, seed=77).summary())

    def erase(self, obj: str, modules: str, ratio: float) -> dict[str, Any]:
        """What erasing ``obj`` does to it and to the others."""

        def compute() -> dict[str, Any]:
            edit = self.study.erased(self.scores, obj, ratio, modules)
            comparison, _ = self.study.compare(self.before, edit, obj)
            print(f"{modules} {ratio:g}\n{comparison.table()}\n", flush=True)
            return {**comparison.to_dict(), "point": comparison.point(ratio), "keep_weight": KEEP_WEIGHT}

        return self.stored(f"erase-{modules}-{ratio:g}-{obj}", compute)

    def erase_style(self, style: str) -> dict[str, Any]:
        """What erasing ``style`` does to it, to the other styles and to the objects."""

        def compute() -> dict[str, Any]:
            settings = {"axis": "style", "per_concept": STYLE_PER_CONCEPT}
            edit = self.study.erased_style(style, STYLE_RATIO)
            comparison, _ = self.study.compare(self.study.evaluate(**settings), edit, style, **settings)
            print(f"{comparison.table()}\n", flush=True)
            return comparison.to_dict()

        return self.stored(f"erase-style-{style}", compute)

    def amplify(self, modules: str, ratio: float) -> dict[str, Any]:
        """What amplifying the rare object does to it."""

        def compute() -> dict[str, Any]:
            rare = {"concepts": [RARE_OBJECT], "per_concept": AMPLIFY_PER_CONCEPT}
            edit = self.study.amplified(self.study.attribute_drawing(RARE_OBJECT), ratio, modules)
            comparison, _ = self.study.compare(self.study.evaluate(**rare), edit, RARE_OBJECT, **rare)
            others, _ = self.study.compare(self.before, edit, RARE_OBJECT)
            print(f"{modules} {ratio:g}\n{comparison.table()}\n{others.table()}\n", flush=True)
            return {"rare": comparison.to_dict(), "all": others.to_dict()}

        return self.stored(f"amplify-{modules}-{ratio:g}", compute)


def mean_point(points: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean over concepts of points as ``Comparison.point`` gives them, without intervals."""
    keys = ("ratio", "target", "others", "style")
    return {key: sum(point[key] for point in points) / len(points) for key in keys}


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    """One line per erased object."""
    lines = ["| erased | before | after | others kept | worst other | style kept |", "|---|---|---|---|---|---|"]
    for obj, row in rows.items():
        worst = row["concepts"][row["worst_other"]]
        lines.append(
            f"| {obj} | {row['target']['before']:.2f} | {row['target']['after']:.2f} "
            f"| {row['others']['kept_percent']:.0f}% "
            f"| {row['worst_other']} {worst['before']:.2f} → {worst['after']:.2f} "
            f"| {row['axes']['style']['kept_percent']:.0f}% |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.zoo_tables", description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", choices=MODELS, default=MODELS[0])
    parser.add_argument("--per-concept", type=int, default=16)
    arguments = parser.parse_args()
    tables = Tables(arguments.output, Study(per_concept=arguments.per_concept, pipeline=load(arguments.model)))
    tables.model()
    for style in STYLES:
        tables.erase_style(style)
    curves: dict[str, list[dict[str, Any]]] = {}
    for modules, ratio in ERASURES:
        rows = {obj: tables.erase(obj, modules, ratio) for obj in OBJECTS}
        write_text(arguments.output / f"erase-{modules}-{ratio:g}.md", markdown(rows))
        curves.setdefault(modules, []).append(mean_point([row["point"] for row in rows.values()]))
    curves = {modules: sorted(points, key=lambda point: point["ratio"]) for modules, points in curves.items()}
    write_bytes(arguments.output / "curves.png", tradeoff_plot(curves, title="Mean over the 12 objects"))
    for modules in (CROSS_ATTENTION, FEED_FORWARD):
        for ratio in AMPLIFY_RATIOS:
            tables.amplify(modules, ratio)


if __name__ == "__main__":
    main()
