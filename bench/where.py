"""``python -m bench.where --output DIR``: where a concept lives in a joint-attention transformer (zoo:emoji-flow).

Edits of the same procedure (scores, contrast, gain against damage, refined), made of different parts of the model: what
reads the text, what reads the picture, both, the feed-forward layers of either stream, the modulation, whole heads. For
every part, size and concept: what is left of the concept, and what the others lose. Saved one by one; a second run goes
on where the first stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cad_fast
from cad_fast import ComponentSpace, ConceptErasure, Edit, Recording, Selection, refine, zoo
from cad_fast.attribution import Attributor, Scores
from cad_fast.attribution.measuring.plans import Target
from cad_fast.demo.study import EVALUATION_SEED, EXPONENT, KEEP_WEIGHT, NEGATIVE_GUIDANCE, WINDOWS
from cad_fast.edits.damage import Expressed, Moved, objectives_under
from cad_fast.evaluation import Evaluation, evaluate
from cad_fast.files import read_json, require_writable_folder, write_json, write_text
from cad_fast.zoo.prompt_set import emoji_prompts

MODEL = "emoji-flow"
CONCEPTS = ("car", "noto", "cat", "clock")
KEPT = {"object": ("dog", "flower", "tree", "fish"), "style": zoo.STYLES}
# A stream of its own: nothing was chosen on it.
SEED = EVALUATION_SEED + 6000
SIZES = (0.02, 0.08)


@dataclass(frozen=True)
class Part:
    """Modules of the transformer, by a pattern; of a kind of component, and in sizes of its own where these are few."""

    name: str
    modules: str
    kind: Any = "weight"
    sizes: tuple[float, ...] = SIZES


TEXT_KV, IMAGE_KV = r".*attn\.add_[kv]_proj", r".*attn\.to_[kv]"
PARTS = (
    Part("text K/V", TEXT_KV),
    Part("image K/V", IMAGE_KV),
    Part("text and image K/V", f"{TEXT_KV}|{IMAGE_KV}"),
    Part("feed-forward, image", r".*\.ff\.net\..*"),
    Part("feed-forward, text", r".*\.ff_context\.net\..*"),
    Part("adaLN modulation", r".*norm1(_context)?\.linear|norm_out\.linear"),
    Part("heads", "attention", "head", (1 / 24, 3 / 24)),
)


class Where:
    """The cells of the study, with what they share made once."""

    def __init__(self, folder: Path, samples: int, rounds: int, per_target: int, per_other: int) -> None:
        self.folder = require_writable_folder(folder)
        self.samples, self.rounds = samples, rounds
        self.per_target, self.per_other = per_target, per_other
        self.generation = zoo.generation(MODEL)
        self._recordings: dict[str, Recording] = {}
        self._before: dict[str, tuple[Evaluation, Evaluation]] = {}
        self._scores: dict[tuple[str, str, bool], Scores] = {}

    @cached_property
    def pipeline(self) -> Any:
        return zoo.load(MODEL)

    @cached_property
    def scorer(self) -> Any:
        return zoo.scorer()

    def objective(self, concept: str, beyond: float = 0.0) -> ConceptErasure:
        """J in the steps that settle the concept; of a style against the object alone."""
        windows = WINDOWS[MODEL]
        if concept in zoo.STYLES:
            return ConceptErasure("base", windows.styles, beyond)
        return ConceptErasure("unconditional", windows.objects, beyond)

    def recording(self, concept: str) -> Recording:
        """So many pictures of a concept, its prompts taking turns; of a style with the objects alone as the base."""
        if concept not in self._recordings:
            texts = (zoo.prompts(concept) * self.samples)[: self.samples]
            recording = cad_fast.record(self.pipeline, texts, seeds=0, progress=False, **self.generation.to_kwargs())
            if concept in zoo.STYLES:
                bases = [text.replace(f" in {concept} style", "") for text in texts]
                recording = cad_fast.with_base(recording, self.pipeline, bases, progress=False)
            self._recordings[concept] = recording
        return self._recordings[concept]

    def others(self, concept: str) -> list[str]:
        axis = "style" if concept in zoo.STYLES else "object"
        return [name for name in KEPT[axis] if name != concept]

    def drawn(self, concept: str, edit: Edit | None = None) -> tuple[Evaluation, Evaluation]:
        """Pictures of the concept, and of the others, on seeds of their own."""
        if edit is None and concept in self._before:
            return self._before[concept]
        settings: dict[str, Any] = {"generation": self.generation, "progress": False, "seed": SEED, "edit": edit}
        settings["axis"] = "style" if concept in zoo.STYLES else "object"

        def pictures(concepts: Sequence[str], count: int) -> Evaluation:
            return evaluate(
                self.pipeline, emoji_prompts(), self.scorer, concepts=concepts, per_concept=count, **settings
            )

        found = pictures([concept], self.per_target), pictures(self.others(concept), self.per_other)
        if edit is None:
            self._before[concept] = found
        return found

    def scores(self, part: Part, concept: str, sensitivity: bool = False) -> Scores:
        """What each component does for a concept, or what its outputs would lose; computed once."""
        key = part.name, concept, sensitivity
        if key not in self._scores:
            space = ComponentSpace.of(self.pipeline, part.kind, part.modules)
            method: Any = "sensitivity" if sensitivity else "gradient" if part.kind == "weight" else "exact"
            attributor = Attributor(self.pipeline, self.objective(concept), space, method=method)
            self._scores[key] = attributor.run(self.recording(concept), concept=concept, progress=False)
        return self._scores[key]

    def edit(self, part: Part, size: float, concept: str) -> Edit:
        """An edit of this part and size, as the tables of the model make theirs."""
        others = self.others(concept)
        selection = Selection(
            size,
            keep=[self.scores(part, name) for name in others],
            keep_weight=KEEP_WEIGHT,
            sensitivity=[self.scores(part, name, sensitivity=True) for name in others],
            exponent=EXPONENT,
        )
        refined = refine(
            self.pipeline,
            self.recording(concept),
            self.scores(part, concept),
            selection,
            objective=self.objective(concept, NEGATIVE_GUIDANCE),
            rounds=self.rounds,
            progress=False,
        )
        return Edit.from_scores(refined, selection, name=f"{concept}-erase")

    def cell(self, part: Part, size: float, concept: str) -> dict[str, Any]:
        """What the edit of this part and size leaves of the concept, and what it costs the others."""
        path = self.folder / f"{concept}-{part.name.replace(' ', '-').replace('/', '')}-{size:.3f}.json"
        if path.exists():
            return read_json(path)
        edit, objective = self.edit(part, size, concept), self.objective(concept)
        targets = {concept: Target(Expressed(objective.timesteps, objective.base), self.recording(concept))}
        for name in self.others(concept):
            targets[name] = Target(Moved(objective.timesteps, objective.base), self.recording(name))
        moved = objectives_under(self.pipeline, edit, targets)
        left = moved.pop(concept)
        before, after = self.drawn(concept), self.drawn(concept, edit)
        axis = before[0].axis
        beside = "object" if axis == "style" else "style"
        found = {
            "part": part.name,
            "size": size,
            "concept": concept,
            "n_components": edit.n_components,
            "n_weights": edit.n_weights,
            "left": left,
            "moved": sum(moved.values()) / len(moved),
            "before": before[0].tally(axis=axis).accuracy,
            "after": after[0].tally(axis=axis).accuracy,
            "others_before": before[1].tally(axis=axis).accuracy,
            "others_after": after[1].tally(axis=axis).accuracy,
            "beside_before": before[1].tally(axis=beside).accuracy,
            "beside_after": after[1].tally(axis=beside).accuracy,
        }
        write_json(path, found)
        print(line(found), flush=True)
        return found


HEAD = """| concept | part | size | weights | left | others moved | concept | others | their style or object |
|---|---|---|---|---|---|---|---|---|
"""


def line(cell: dict[str, Any]) -> str:
    """A cell as one line of the table."""
    return (
        f"| {cell['concept']} | {cell['part']} | {cell['size']:.1%} | {cell['n_weights']:,} | {cell['left']:.2f} "
        f"| {cell['moved']:.3f} | {cell['before']:.2f} → {cell['after']:.2f} "
        f"| {cell['others_before']:.2f} → {cell['others_after']:.2f} "
        f"| {cell['beside_before']:.2f} → {cell['beside_after']:.2f} |"
    )


def summary(cells: Sequence[dict[str, Any]]) -> str:
    """Means over the objects, per part and size."""
    lines = [
        "| part | size | objects | left, predicted | others moved | objects after | others kept | style kept |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for part in PARTS:
        for size in part.sizes:
            own = [c for c in cells if c["part"] == part.name and c["size"] == size and c["concept"] in zoo.OBJECTS]
            if own:
                mean = {key: sum(c[key] for c in own) / len(own) for key in own[0] if isinstance(own[0][key], float)}
                lines.append(
                    f"| {part.name} | {size:.1%} | {len(own)} | {mean['left']:.2f} | {mean['moved']:.3f} "
                    f"| {mean['after']:.2f} | {mean['others_after'] / mean['others_before']:.0%} "
                    f"| {mean['beside_after'] / mean['beside_before']:.0%} |"
                )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.where", description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--concepts", nargs="+", choices=(*zoo.OBJECTS, *zoo.STYLES), default=CONCEPTS)
    parser.add_argument("--samples", type=int, default=12, help="recorded pictures per concept (default 12)")
    parser.add_argument("--rounds", type=int, default=12, help="rounds of refining (default 12)")
    parser.add_argument("--per-target", type=int, default=16, help="pictures of the concept (default 16)")
    parser.add_argument("--per-other", type=int, default=8, help="pictures of each of the others (default 8)")
    arguments = parser.parse_args()
    sizes = arguments.samples, arguments.rounds, arguments.per_target, arguments.per_other
    study, cells = Where(arguments.output, *sizes), []
    settings, path = dict(zip(("samples", "rounds", "per_target", "per_other"), sizes, strict=True)), "settings.json"
    if (study.folder / path).exists() and read_json(study.folder / path) != settings:
        raise SystemExit(f"{study.folder} holds figures made with {read_json(study.folder / path)}, not {settings}")
    write_json(study.folder / path, settings)
    for concept in arguments.concepts:
        for part in PARTS:
            cells += [study.cell(part, size, concept) for size in part.sizes]
        lines = HEAD + "".join(f"{line(cell)}\n" for cell in cells)
        write_text(study.folder / "where.md", f"{summary(cells)}\n{lines}")
    print((study.folder / "where.md").read_text())


if __name__ == "__main__":
    main()
