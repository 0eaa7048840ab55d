"""``python -m bench.carry_over --output DIR``: ``cad_fast.erase`` by its defaults, on models it was not tuned on.

Every object, and every style, is erased by one call on each model. What is left of it, and what the others and their
styles lose, is judged by the zoo's classifier on seeds that no edit was made from. The defaults were chosen on
``emoji``; ``emoji-flow`` and those of ``bench.other_models`` (given as NAME=FOLDER) had no part in it. Cells are saved
one by one; a second run goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import cad_fast
from bench.other_models import MODELS, prompt_set, prompts_of
from cad_fast import zoo
from cad_fast.evaluation import Evaluation, compare, evaluate
from cad_fast.files import read_json, require_writable_folder, write_json, write_png, write_text
from cad_fast.report import contact_sheet

# A stream of its own: nothing was chosen on it.
SEED = 23_000
SHOWN = 6
CONCEPTS = tuple(each for each in (*zoo.OBJECTS, *zoo.STYLES) if each != zoo.RARE_OBJECT)


class CarryOver:
    """The cells of one model."""

    def __init__(self, folder: Path, name: str, source: Path | None, per_target: int, per_other: int) -> None:
        self.folder, self.name = require_writable_folder(folder / name), name
        self.per_target, self.per_other = per_target, per_other
        self.pipeline = zoo.load(name) if source is None else cad_fast.load_pipeline(str(source))
        self.scorer, self.prompts = zoo.scorer(), prompt_set(name)
        self.generation = zoo.generation(name if source is None else zoo.MODELS[0])
        self._before: dict[tuple[str, int], Evaluation] = {}

    def pictures(self, axis: str, count: int, concepts: list[str], edit: Any = None) -> Evaluation:
        """Pictures of some concepts of an axis."""
        key = axis, count
        settings: dict[str, Any] = {"generation": self.generation, "progress": False, "seed": SEED, "batch_size": 24}
        settings |= {"axis": axis, "concepts": concepts, "per_concept": count, "edit": edit, "keep_images": True}
        if edit is None and key in self._before:
            return self._before[key]
        found = evaluate(self.pipeline, self.prompts, self.scorer, **settings)
        if edit is None:
            self._before[key] = found
        return found

    def arguments(self, concept: str) -> dict[str, Any]:
        """What the model's captions are; an embedded model knows its own."""
        if self.name in zoo.MODELS:
            return {}
        axis = [each for each in (zoo.STYLES if concept in zoo.STYLES else zoo.OBJECTS) if each != zoo.RARE_OBJECT]
        found: dict[str, Any] = {"prompts": prompts_of(self.name, concept), **self.generation.to_kwargs()}
        found["keep"] = {each: prompts_of(self.name, each) for each in axis if each != concept}
        if concept in zoo.STYLES:
            found["base_prompts"] = [MODELS[self.name].say(obj, None) for obj in zoo.OBJECTS]
        return found

    def cell(self, concept: str) -> dict[str, Any]:
        """Erase the concept, and hold the pictures against those of before."""
        path = self.folder / f"{concept}.json"
        if path.exists():
            return dict(read_json(path))
        began = time.perf_counter()
        edit = cad_fast.erase(self.pipeline, concept, progress=False, **self.arguments(concept))
        seconds = time.perf_counter() - began
        edit.save_pretrained(self.folder / "edits" / concept)
        axis = "style" if concept in zoo.STYLES else "object"
        all_of_axis = [each for each in CONCEPTS if each in self.scorer.axes[axis]]
        count = self.per_other * (4 if axis == "style" else 1)
        before = self.pictures(axis, count, all_of_axis)
        after = self.pictures(axis, count, all_of_axis, edit)
        found = {"model": self.name, "concept": concept, "seconds": seconds, "weights": edit.n_weights}
        found |= {"predicted": edit.provenance["predicted"], "because": edit.provenance["making"]["chosen_because"]}
        found |= {"tried": edit.provenance["making"]["candidates"]}
        found |= compare(before, after, concept).to_dict()
        target = self.pictures(axis, self.per_target, [concept], edit)
        tally = target.tally(concept)
        found["left"] = {"hits": tally.hits, "n": tally.n, "became": target.became(concept)}
        others = [each for each in all_of_axis if each != concept][:SHOWN]
        rows = [[one.images[each][0] for each in (concept, *others)] for one in (before, after) if one.images]
        write_png(self.folder / f"{concept}.png", contact_sheet(rows, ["before", "after"], [concept, *others]))
        write_json(path, found)
        print(line(found), flush=True)
        return found


HEAD = """| model | concept | size | window | left | others kept | worst other | style or object kept | weights | s |
|---|---|---|---|---|---|---|---|---|---|
"""


def line(cell: dict[str, Any]) -> str:
    """A cell as one line of the table."""
    left, predicted, worst = cell["left"], cell["predicted"], cell["worst_other"]
    beside = next(iter(cell["axes"].values()))
    worst_after = cell["concepts"][worst]["after"]
    window = "-" if predicted["window"] is None else "{:.0f} to {:.0f}".format(*predicted["window"])
    return (
        f"| {cell['model']} | {cell['concept']} | {predicted['ratio']:.0%} | {window} "
        f"| {left['hits'] / left['n']:.2f} | {cell['others']['kept_percent']:.0f}% | {worst} {worst_after:.2f} "
        f"| {beside['kept_percent']:.0f}% | {cell['weights']:,} | {cell['seconds']:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.carry_over", description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--models", nargs="+", default=list(zoo.MODELS), metavar="NAME", help="of the zoo, or NAME=FOLDER of others"
    )
    parser.add_argument("--concepts", nargs="+", choices=CONCEPTS, default=CONCEPTS)
    parser.add_argument("--per-target", type=int, default=24, help="pictures of what was erased (default 24)")
    parser.add_argument("--per-other", type=int, default=12, help="pictures of each other object (default 12)")
    arguments = parser.parse_args()
    cells = []
    for model in arguments.models:
        name, _, source = model.partition("=")
        if source and name not in MODELS:
            parser.error(f"{name!r} is none of {', '.join(MODELS)}")
        study = CarryOver(
            arguments.output, name, Path(source) if source else None, arguments.per_target, arguments.per_other
        )
        for concept in arguments.concepts:
            cells.append(study.cell(concept))
            write_text(arguments.output / "carry_over.md", HEAD + "".join(f"{line(each)}\n" for each in cells))
    print((arguments.output / "carry_over.md").read_text())


if __name__ == "__main__":
    main()
