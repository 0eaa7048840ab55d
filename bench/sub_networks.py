"""``python -m bench.sub_networks --output DIR``: what a concept's components draw alone, and what is left of pairs.

*Alone*: everything of a kind is ablated but the share that scores highest for the concept, or a random share of the
same size. How much of the concept is still drawn, and how much of another by the same sub-network?
*Pairs*: an object in a style, and two objects in one prompt; one of the two is erased. What becomes of the other?
Saved one by one; a second run goes on where the first stopped.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import cad_fast
from cad_fast import ComponentSpace, ConceptErasure, Edit, zoo
from cad_fast.attribution import Attributor, Scores
from cad_fast.auditing.drawing import Drawer
from cad_fast.demo.study import EVALUATION_SEED
from cad_fast.evaluation.scorers import checked_probabilities
from cad_fast.files import read_json, require_writable_folder, write_json, write_png, write_text
from cad_fast.report import contact_sheet

OBJECTS = ("car", "cat", "face", "tree")
SHARES = (0.1, 0.2, 0.4, 0.6, 0.8)
# Kind of component, preset, method of its scores. The outputs at all timesteps count: a sub-network has to draw it all.
KINDS: dict[str, tuple[Any, str, Any]] = {
    "K/V weights": ("weight", "cross-attention-kv", "gradient"),
    "feed-forward neurons": ("neuron", "feed-forward", "ablated_gradient"),
}
STYLED = (("car", "noto"), ("cat", "fluent"), ("tree", "twemoji"))
PAIRS = (("cat", "car"), ("tree", "face"), ("dog", "clock"))
# A stream of its own: nothing was chosen on it.
SEED = EVALUATION_SEED + 8000
SHOWN = 6


class SubNetworks:
    """The cells of both studies, with what they share made once."""

    def __init__(self, folder: Path, model: str, pictures: int) -> None:
        self.folder, self.model, self.pictures = require_writable_folder(folder), model, pictures
        self.pipeline, self.scorer, self.generation = zoo.load(model), zoo.scorer(), zoo.generation(model)
        self._scores: dict[tuple[str, str], Scores] = {}
        self._edits: dict[str, Edit] = {}

    def stored(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The content of ``name``.json, from ``compute()`` if there is none."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            write_json(path, compute())
        return dict(read_json(path))

    def scores(self, kind: str, concept: str) -> Scores:
        """Of all components of a kind, from six pictures of the concept."""
        if (kind, concept) not in self._scores:
            of, preset, method = KINDS[kind]
            space = ComponentSpace.of(self.pipeline, of, preset)
            texts = zoo.prompts(concept) * 2
            recording = cad_fast.record(self.pipeline, texts, seeds=0, progress=False, **self.generation.to_kwargs())
            attributor = Attributor(self.pipeline, ConceptErasure(), space, method=method)
            self._scores[kind, concept] = attributor.run(recording, concept=concept, progress=False)
        return self._scores[kind, concept]

    def drawn(self, prompts: list[str], concept: str, edit: Edit | None, sheet: str | None = None) -> Counter[str]:
        """Counts, per label of object and style, of what the pictures are recognised as."""
        drawer = Drawer(self.pipeline, concept, self.scorer, "object", self.generation, SEED)
        images = drawer.draw(self.pictures, prompts, edit=edit)
        if sheet is not None:
            write_png(self.folder / f"{sheet}.png", contact_sheet([images[:SHOWN]], [sheet], [""] * SHOWN))
        found: Counter[str] = Counter()
        for axis, probabilities in checked_probabilities(self.scorer, images).items():
            found.update(self.scorer.axes[axis][each] for each in probabilities.argmax(1).tolist())
        return found

    def alone(self, kind: str, concept: str, share: float) -> dict[str, Any]:
        """Keep a share of the components of a kind, the best for the concept or any, and draw it and another."""
        scores = self.scores(kind, concept)
        other = OBJECTS[(OBJECTS.index(concept) + 1) % len(OBJECTS)]
        n = len(scores)
        dropped = {
            "best": scores.values.argsort(descending=True, stable=True)[round(share * n) :],
            "random": torch.randperm(n, generator=torch.Generator().manual_seed(0))[round(share * n) :],
        }
        found: dict[str, Any] = {"kind": kind, "concept": concept, "share": share, "other": other}
        for way, indices in dropped.items():
            edit = Edit.from_indices(scores.space, indices.sort().values, name=f"only-{way}")
            for each in (concept, other):
                hits = self.drawn(zoo.prompts(each), each, edit)[each]
                found[f"{way}, {'concept' if each == concept else 'other'}"] = hits / self.pictures
        return found

    def erased(self, concept: str) -> Edit:
        """The one-call edit that erases a concept."""
        if concept not in self._edits:
            self._edits[concept] = cad_fast.erase(self.pipeline, concept, progress=False)
        return self._edits[concept]

    def pair(self, prompt: str, first: str, second: str) -> dict[str, Any]:
        """Draw a prompt of two concepts: as it is, without the one, and without the other."""
        found: dict[str, Any] = {"prompt": prompt, "first": first, "second": second}
        for name, edit in (("as it is", None), (first, self.erased(first)), (second, self.erased(second))):
            slug = prompt.replace(" ", "-") + ("" if edit is None else f"-without-{name}")
            counts = self.drawn([prompt], first if first in zoo.OBJECTS else second, edit, slug)
            found[name] = {each: counts[each] / self.pictures for each in (first, second)}
        return found


def tables(alone: list[dict[str, Any]], pairs: list[dict[str, Any]]) -> str:
    """Both studies as Markdown."""
    ways = ("best, concept", "random, concept", "best, other", "random, other")
    lines = [
        "| kind | concept | kept | concept, best | concept, random | other, best | other, random |",
        "|" + "---|" * 7,
    ]
    lines += [
        f"| {each['kind']} | {each['concept']} | {each['share']:.0%} "
        f"| {' | '.join(f'{each[way]:.2f}' for way in ways)} |"
        for each in alone
    ]
    lines += ["", "| prompt | drawn | as it is | without the first | without the second |", "|---|---|---|---|---|"]
    for each in pairs:
        for of in (each["first"], each["second"]):
            cells = (each[name][of] for name in ("as it is", each["first"], each["second"]))
            lines.append(f"| {each['prompt']} | {of} | {' | '.join(f'{cell:.2f}' for cell in cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sub_networks", description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", choices=zoo.MODELS, default=zoo.MODELS[0])
    parser.add_argument("--pictures", type=int, default=12, help="per prompt and edit (default 12)")
    arguments = parser.parse_args()
    study = SubNetworks(arguments.output, arguments.model, arguments.pictures)
    alone, pairs = [], []
    for kind in KINDS:
        for concept in OBJECTS:
            for share in SHARES:
                name = f"{kind.replace('/', '')}-{concept}-{share}".replace(" ", "-")
                alone.append(study.stored(name, lambda k=kind, c=concept, s=share: study.alone(k, c, s)))  # type: ignore[misc]
    prompts = [(zoo.caption(obj, style), obj, style) for obj, style in STYLED]
    prompts += [(f"a {one} and a {two}", one, two) for one, two in PAIRS]
    for prompt, first, second in prompts:
        name = f"pair-{first}-{second}"
        pairs.append(study.stored(name, lambda p=prompt, f=first, s=second: study.pair(p, f, s)))  # type: ignore[misc]
    write_text(study.folder / "sub_networks.md", tables(alone, pairs))
    print(tables(alone, pairs))


if __name__ == "__main__":
    main()
