"""``python -m bench.recall --output DIR``: what amplifying brings back of concepts that other methods erased.

For each baseline (``bench.baselines``) and object of the embedded model: what the baseline left of the object, of the
others and of the style, and what an edit of ``cad_fast.amplify`` brings back, by the shipped pictures or by the outputs
of the model before it was erased. A baseline that leaves the object recognised in more than 10% is tried with stronger
settings, in turns (``STRONGER``). Every cell is saved as it is finished; a second run goes on where the first stopped.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cad_fast
from bench.baselines import BASELINES, STRONGER, Baseline, write_checkpoint
from cad_fast import zoo
from cad_fast.evaluation import Change, Evaluation, PairedCounts, evaluate
from cad_fast.files import read_json, require_writable_folder, write_json, write_png, write_text
from cad_fast.report import contact_sheet
from cad_fast.zoo.prompt_set import emoji_prompts

# The recipe was chosen on the first two objects and is judged on the others.
CHOSEN_ON = ("car", "cat")
OBJECTS = (*CHOSEN_ON, "dog", "face", "flower", "fish", "tree", "clock")
# A stream of its own: no other study draws from it, and nothing was chosen on it.
SEED = 9000
PER_OTHER = 4
# A concept counts as erased when no more than this is recognised, and as recalled from the other on.
ERASED, RECALLED = 0.1, 0.75
OTHERS_KEPT, STYLE_KEPT = 95, 90
SHARED: dict[str, Any] = {"num_inference_steps": 10, "samples": 9}
KEYS_AND_VALUES = ("attn2.to_k", "attn2.to_v")
# Of what was pruned nothing is left to uncover: what stands beside it has to be rebalanced, in the same layers too.
RECIPES: dict[str, dict[str, Any]] = {
    "esd-x": {"target_modules": KEYS_AND_VALUES, "ratio": 0.05, **SHARED},
    "uce": {"target_modules": KEYS_AND_VALUES, "ratio": 0.05, **SHARED},
    "conceptprune": {"target_modules": (*KEYS_AND_VALUES, "ff.net.0.proj", "ff.net.2"), "ratio": 0.05, **SHARED},
    "cad": {"target_modules": (*KEYS_AND_VALUES, "ff.net.0.proj", "ff.net.2"), "ratio": 0.05, **SHARED},
}


class Recalling:
    """The cells of the study, with what they share made once."""

    def __init__(self, folder: Path, per_target: int) -> None:
        self.folder, self.per_target = require_writable_folder(folder), per_target
        self.intact, self.scorer = zoo.load(), zoo.scorer()
        self._before: dict[str, tuple[Evaluation, Evaluation]] = {}

    def stored(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The content of ``name``.json, from ``compute()`` if there is none."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            write_json(path, compute())
        return read_json(path)

    def erased(self, baseline: Baseline, number: int, concept: str) -> Any:
        """The model with the concept erased by a baseline, whose checkpoint is made if there is none."""
        folder = self.folder / "checkpoints" / (baseline.name if number == 0 else f"{baseline.name}-{number}")
        path = folder / f"{concept}.safetensors"
        if not path.exists():
            write_checkpoint(baseline, self.intact, concept, folder)
        return cad_fast.load_pipeline("zoo:emoji", denoiser_weights=path)

    def pictures(self, pipeline: Any, concept: str, edit: Any = None) -> tuple[Evaluation, Evaluation]:
        """Pictures of the concept, and of the other objects but the rare one."""
        others = [each for each in zoo.OBJECTS if each not in (concept, zoo.RARE_OBJECT)]

        def drawn(concepts: list[str], count: int) -> Evaluation:
            settings: dict[str, Any] = {
                "generation": zoo.generation(),
                "progress": False,
                "seed": SEED,
                "batch_size": 48,
            }
            arguments = {"concepts": concepts, "per_concept": count, "edit": edit, "keep_images": True, **settings}
            return evaluate(pipeline, emoji_prompts(), self.scorer, **arguments)

        return drawn([concept], self.per_target), drawn(others, PER_OTHER)

    def before(self, concept: str) -> tuple[Evaluation, Evaluation]:
        """Pictures of the model before anything was erased, drawn once."""
        if concept not in self._before:
            self._before[concept] = self.pictures(self.intact, concept)
        return self._before[concept]

    def cell(self, method: str, concept: str, way: str) -> dict[str, Any]:
        """What the baseline left, what amplifying brings back where something was erased, and what each costs."""
        found: dict[str, Any] = {
            "method": method,
            "concept": concept,
            "way": way,
            "recipe": RECIPES[method],
            "tries": [],
        }
        for number, baseline in enumerate((BASELINES[method], *STRONGER.get(method, ()))):
            pipeline = self.erased(baseline, number, concept)
            erased = self.pictures(pipeline, concept)
            left = erased[0].tally().accuracy
            found["tries"].append({"settings": asdict(baseline), "left": left})
            if left <= ERASED:
                break
        found |= {"left": changes(self.before(concept), erased), "recalled": None}
        if left <= ERASED:
            original = self.intact if way == "original" else None
            edit = cad_fast.amplify(pipeline, concept, original=original, progress=False, **RECIPES[method])
            recalled = self.pictures(pipeline, concept, edit)
            found |= {"recalled": changes(erased, recalled), "weights": edit.n_weights}
            found |= {"predicted": edit.provenance["predicted"]}
            rows = [each[0].images[concept][:8] for each in (self.before(concept), erased, recalled) if each[0].images]
            sheet = contact_sheet(rows, ["before", "erased", "recalled"], [])
            write_png(self.folder / f"{method}-{concept}-{way}.png", sheet)
        print(cell_line(found), flush=True)
        return found


def changes(before: tuple[Evaluation, Evaluation], after: tuple[Evaluation, Evaluation]) -> dict[str, Any]:
    """The change of the target, of the others and of the others' style, paired by seed."""
    return {
        "target": _change(before[0], after[0], "object").to_dict(),
        "others": _change(before[1], after[1], "object").to_dict(),
        "style": _change(before[1], after[1], "style").to_dict(),
        "became": after[0].became(after[0].concepts[0]),
    }


def _change(before: Evaluation, after: Evaluation, axis: str) -> Change:
    pairs = zip(before.outcomes, after.outcomes, strict=True)
    counts = Counter((one.hit(axis), other.hit(axis)) for one, other in pairs)
    return Change(PairedCounts(counts[True, True], counts[True, False], counts[False, True], counts[False, False]))


def missed(recalled: dict[str, Any]) -> list[str]:
    """Which of the three bars are missed."""
    bars = {
        "target": recalled["target"]["after"] >= RECALLED,
        "others": recalled["others"]["kept_percent"] >= OTHERS_KEPT,
        "style": recalled["style"]["kept_percent"] >= STYLE_KEPT,
    }
    return [name for name, cleared in bars.items() if not cleared]


HEAD = """| method | object | tried | left | others kept | style kept | recalled | others kept | style kept | missed |
|---|---|---|---|---|---|---|---|---|---|
"""


def cell_line(cell: dict[str, Any]) -> str:
    """A cell as one line of the table. What amplifying keeps is relative to the erased model."""
    tried = str(len(cell["tries"]))
    cells = [cell["method"], cell["concept"], tried, f"{cell['left']['target']['after']:.2f}", *_kept(cell["left"])]
    if cell["recalled"] is None:
        return f"| {' | '.join(cells)} | not erased | | | |"
    low, high = cell["recalled"]["target"]["after_interval"]
    cells += [f"{cell['recalled']['target']['after']:.2f} [{low:.2f}, {high:.2f}]", *_kept(cell["recalled"])]
    return f"| {' | '.join([*cells, ', '.join(missed(cell['recalled']))])} |"


def _kept(change: dict[str, Any]) -> list[str]:
    return [f"{change[name]['kept_percent']:.0f}%" for name in ("others", "style")]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.recall", description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", choices=BASELINES, default=list(BASELINES))
    parser.add_argument("--concepts", nargs="+", choices=OBJECTS, default=OBJECTS)
    parser.add_argument("--way", choices=("images", "original"), default="images", help="what shows the concept")
    parser.add_argument("--per-target", type=int, default=24, help="pictures of the erased object (default 24)")
    arguments = parser.parse_args()
    study, way, cells = Recalling(arguments.output, arguments.per_target), arguments.way, []
    for concept in arguments.concepts:
        for method in arguments.methods:
            name = f"{method}-{concept}-{way}"
            cells.append(study.stored(name, lambda m=method, c=concept: study.cell(m, c, way)))
    table = HEAD + "".join(f"{cell_line(cell)}\n" for cell in cells)
    write_text(arguments.output / f"recall-{way}.md", table)
    print(table)


if __name__ == "__main__":
    main()
