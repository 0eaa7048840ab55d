"""``python -m bench.erasure --output DIR``: scores that predict J, and edits that erase: two columns, side by side.

For every way to make scores: r with measured J on held-out ablations, and what an edit of 3% of the cross-attention key
and value weights made from them does to its target and to other objects, on the embedded model. Saved one by one; a
second run goes on where the first stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import cad_fast
from cad_fast import Ablation, ConceptErasure, Recording
from cad_fast.attribution import Attributor, Scores
from cad_fast.attribution.trust import correlation
from cad_fast.demo.study import CROSS_ATTENTION, EVALUATION_SEED, KEEP_WEIGHT, WINDOWS
from cad_fast.edits import Damage, Edit, Selection, overlap, predicted_damage, refine
from cad_fast.evaluation import compare, evaluate
from cad_fast.files import read_json, require_writable_folder, write_bytes, write_json, write_text
from cad_fast.report import damage_plot, overlap_plot
from cad_fast.zoo import OBJECTS
from cad_fast.zoo.prompt_set import emoji_prompts

TARGETS = ("car", "cat", "face", "flower")
# What is drawn to see what is kept: the targets and three more.
SHOWN = (*TARGETS, "dog", "clock", "tree")
RATIO = 0.03
# A stream of its own: neither the published tables' nor one that anything was chosen on.
SEED = EVALUATION_SEED + 4000
EARLY = ConceptErasure(timesteps=WINDOWS["emoji"].objects)
AWAY = ConceptErasure(timesteps=WINDOWS["emoji"].objects, negative_guidance=1.0)
BOTH = ConceptErasure(timesteps=WINDOWS["emoji"].objects, both_branches=True)


@dataclass(frozen=True)
class Way:
    """How scores for an edit are made: estimator, J, whether other objects are spared, J of refining (None: not)."""

    name: str
    method: str
    objective: ConceptErasure
    keep: bool = False
    refined: ConceptErasure | None = None


WAYS = (
    Way("gradient, all timesteps", "gradient", ConceptErasure()),
    Way("gradient, early timesteps", "gradient", EARLY),
    Way("gradient, early, both branches", "gradient", BOTH),
    Way("gradient, early, contrast", "gradient", EARLY, keep=True),
    Way("ablated gradient, all timesteps", "ablated_gradient", ConceptErasure()),
    Way("ablated gradient, early timesteps", "ablated_gradient", EARLY),
    Way("ablated gradient, early, both branches", "ablated_gradient", BOTH),
    Way("ablated gradient, early, contrast", "ablated_gradient", EARLY, keep=True),
    Way("refined from gradient, early, contrast, beyond", "gradient", EARLY, True, AWAY),
    Way("refined from ablated gradient, early, contrast, beyond", "ablated_gradient", EARLY, True, AWAY),
    Way("refined from gradient, early, contrast", "gradient", EARLY, True, EARLY),
)


class Erasing:
    """Scores, edits and what they do, with everything that is shared made once."""

    def __init__(self, folder: Path, per_concept: int) -> None:
        self.folder, self.per_concept = require_writable_folder(folder), per_concept
        self._scores: dict[tuple[str, str, str], Scores] = {}
        self._recordings: dict[tuple[str, int], Recording] = {}

    @cached_property
    def pipeline(self) -> Any:
        return cad_fast.zoo.load()

    @cached_property
    def scorer(self) -> Any:
        return cad_fast.zoo.scorer()

    def stored(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The content of ``name``.json, from ``compute()`` if there is none."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            write_json(path, compute())
        return read_json(path)

    def recording(self, concept: str, pictures: int) -> Recording:
        """So many pictures of an object, spread over the styles."""
        if (concept, pictures) not in self._recordings:
            texts = (cad_fast.zoo.prompts(concept) * pictures)[:pictures]
            settings = cad_fast.zoo.generation().to_kwargs()
            self._recordings[concept, pictures] = cad_fast.record(
                self.pipeline, texts, seeds=0, progress=False, **settings
            )
        return self._recordings[concept, pictures]

    def scores(self, way: Way, concept: str) -> Scores:
        """Of the key and value weights, from six pictures."""
        key = (way.method, repr(way.objective), concept)
        if key not in self._scores:
            attributor = Attributor(self.pipeline, way.objective, target_modules=CROSS_ATTENTION, method=way.method)
            recording = self.recording(concept, 6)
            self._scores[key] = attributor.run(recording, concept=concept, rows_per_pass=40, progress=False)
        return self._scores[key]

    def evaluate(self, edit: Any = None) -> Any:
        """Pictures of every target and of three more objects."""
        settings = {"generation": cad_fast.zoo.generation(), "progress": False, "seed": SEED}
        arguments = {"per_concept": self.per_concept, "batch_size": 48, "concepts": SHOWN, **settings}
        return evaluate(self.pipeline, emoji_prompts(), self.scorer, edit=edit, **arguments)

    @cached_property
    def before(self) -> Any:
        return self.evaluate()

    def r(self, scores: Scores, concept: str) -> float:
        """Pearson's r with early J under 60 held-out ablations of 5% of the weights."""
        attributor = Attributor(self.pipeline, EARLY, target_modules=CROSS_ATTENTION)
        return attributor.check(scores, self.recording(concept, 6), 60, holdout_fractions=(0.05,), progress=False)[
            0
        ].pearson

    def made(self, way: Way, target: str) -> dict[str, Any]:
        """An edit of the target made this way: r of its scores, and what it does."""
        scores = self.scores(way, target)
        keep = [self.scores(way, other) for other in OBJECTS if other != target] if way.keep else []
        selection = Selection(RATIO, keep=keep, keep_weight=KEEP_WEIGHT)
        if way.refined is not None:
            recording = self.recording(target, 12)
            refining = {"objective": way.refined, "progress": False}
            scores = refine(self.pipeline, recording, scores, selection, **refining)
        edit = Edit.from_scores(scores, selection, name=f"{target}-erase")
        comparison = compare(self.before, self.evaluate(edit), target)
        j = self.left(edit, target)
        result = {"way": way.name, "target": target, "r": self.r(scores, target), "j_left": j}
        print(f"{way.name}, {target}: r {result['r']:.2f}, J {j:.2f}, after {comparison.target.after:.2f}", flush=True)
        first = {name: self.scores(WAYS[1], name) for name in OBJECTS}
        damages = {name: damage.to_dict() for name, damage in predicted_damage(edit, first).items()}
        return {**result, "comparison": comparison.to_dict(), "predicted": damages}

    def left(self, edit: Any, target: str) -> float:
        """Early J of the edited network relative to the intact one."""
        attributor = Attributor(self.pipeline, EARLY, target_modules=CROSS_ATTENTION)
        n, recording = attributor.space.n, self.recording(target, 6)
        numbers = attributor.space.split(torch.arange(n))
        indices = [numbers[module].flatten()[own] for module, own in edit.components.items()]
        chosen = [Ablation.from_indices(n, torch.cat(indices).sort().values), Ablation.from_indices(n, [])]
        j = attributor.measured(recording, chosen, progress=False)
        return float(j[0] / j[1])

    def share(self) -> None:
        """The heat map of shared components."""
        early = [self.scores(WAYS[5], name) for name in OBJECTS]
        shares = overlap(early, RATIO)
        write_json(self.folder / "overlap.json", {"concepts": list(OBJECTS), "shares": shares.tolist()})
        title = f"Key and value weights among the top {RATIO:.0%} of two objects"
        write_bytes(self.folder / "attribution-overlap.png", overlap_plot(shares, OBJECTS, title=title))


def markdown(rows: list[dict[str, Any]]) -> str:
    """Means over the targets, one line per way."""
    lines = ["| scores | r | J left | target after | others kept | worst other |", "|---|---|---|---|---|---|"]
    for way in WAYS:
        own = [row for row in rows if row["way"] == way.name]
        if not own:
            continue
        mean = {key: sum(row[key] for row in own) / len(own) for key in ("r", "j_left")}
        after = sum(row["comparison"]["target"]["after"] for row in own) / len(own)
        kept = sum(row["comparison"]["others"]["kept_percent"] for row in own) / len(own)
        worst = min((row["comparison"] for row in own), key=lambda c: c["concepts"][c["worst_other"]]["difference"])
        name, change = worst["worst_other"], worst["concepts"][worst["worst_other"]]
        lines.append(
            f"| {way.name} | {mean['r']:.2f} | {mean['j_left']:.2f} | {after:.2f} | {kept:.0f}% "
            f"| {name} {change['before']:.2f} → {change['after']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def predicted_rank(row: dict[str, Any]) -> float:
    """Correlation over the other objects of predicted relative change of J with the measured change of recognition."""
    others = [name for name in SHOWN if name != row["target"]]
    predicted = torch.tensor([row["predicted"][name]["relative"] for name in others])
    measured = torch.tensor([row["comparison"]["concepts"][name]["difference"] for name in others])
    return float(correlation(predicted, measured)) if float(measured.std()) > 0 else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.erasure", description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--targets", nargs="+", choices=SHOWN, default=TARGETS)
    parser.add_argument("--per-concept", type=int, default=8, help="pictures per object (default 8)")
    arguments = parser.parse_args()
    bench = Erasing(arguments.output, arguments.per_concept)
    rows = []
    for target in arguments.targets:
        for number, way in enumerate(WAYS):
            rows.append(
                bench.stored(f"erase-{target}-{number}", lambda way=way, target=target: bench.made(way, target))
            )
    bench.share()
    write_text(bench.folder / "erasing.md", markdown(rows))
    print(markdown(rows))
    shown = next(row for row in rows if row["target"] == arguments.targets[0] and "beyond" in row["way"])
    damages = {name: Damage(**shown["predicted"][name]) for name in shown["predicted"] if name in SHOWN}
    measured = {name: change["difference"] for name, change in shown["comparison"]["concepts"].items()}
    title = f"Erasing the {shown['target']}: predicted before, measured after"
    write_bytes(bench.folder / "attribution-damage.png", damage_plot(damages, measured, title=title))
    print({row["way"] + ", " + row["target"]: round(predicted_rank(row), 2) for row in rows})


if __name__ == "__main__":
    main()
