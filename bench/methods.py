"""``python -m bench.methods --output DIR``: methods that erase, side by side on the embedded model.

Each baseline (``bench.baselines``) and ``cad_fast.erase`` erase the same objects. The table says what is left of the
object, what becomes of the others and of their style, how far the others' pictures move, how long it takes to make,
how many bytes it is, and whether it can be undone and chosen for each request. Every cell is saved as it is finished;
a second run goes on where the first stopped. Times are of an otherwise idle machine or of none.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cad_fast
from bench.baselines import BASELINES, write_checkpoint
from cad_fast import zoo
from cad_fast.auditing.audit import OTHER_PROMPTS
from cad_fast.auditing.drawing import Drawer
from cad_fast.evaluation import Evaluation, FeatureDistance, compare, evaluate
from cad_fast.evaluation.intervals import Interval, harmonic_mean, harmonic_mean_interval, wilson
from cad_fast.files import read_json, require_writable_folder, write_json, write_png, write_text
from cad_fast.report import contact_sheet
from cad_fast.zoo.prompt_set import emoji_prompts

OURS = "cad_fast.erase"
METHODS = (*BASELINES, OURS)
OBJECTS = ("dog", "tree", "clock")
# A stream of its own: nothing was chosen on it.
SEED = 13_000
SHOWN = 6


class Methods:
    """The cells of the table, with what they share made once."""

    def __init__(self, folder: Path, per_concept: int) -> None:
        self.folder, self.per_concept = require_writable_folder(folder), per_concept
        self.intact, self.scorer = zoo.load(), zoo.scorer()
        self.distance = FeatureDistance(self.scorer)
        self._before: Evaluation | None = None

    def pictures(self, pipeline: Any, edit: Any = None) -> Evaluation:
        """Pictures of all objects but the rare one."""
        return evaluate(
            pipeline,
            emoji_prompts(),
            self.scorer,
            concepts=[each for each in zoo.OBJECTS if each != zoo.RARE_OBJECT],
            per_concept=self.per_concept,
            edit=edit,
            seed=SEED,
            generation=zoo.generation(),
            batch_size=48,
            keep_images=True,
            progress=False,
        )

    @property
    def before(self) -> Evaluation:
        """Pictures of the model as it is, drawn once."""
        if self._before is None:
            self._before = self.pictures(self.intact)
        return self._before

    def cell(self, method: str, concept: str) -> dict[str, Any]:
        """Erase the concept by the method, and hold the pictures against those of before."""
        path = self.folder / f"{method}-{concept}.json"
        if path.exists():
            return dict(read_json(path))
        began = time.perf_counter()
        if method == OURS:
            edit = cad_fast.erase(self.intact, concept, progress=False)
            seconds = time.perf_counter() - began
            folder = self.folder / "edits" / concept
            edit.save_pretrained(folder)
            after, weights = self.pictures(self.intact, edit), edit.n_weights
            size = sum(file.stat().st_size for file in folder.iterdir())
        else:
            checkpoint = write_checkpoint(BASELINES[method], self.intact, concept, self.folder / "checkpoints" / method)
            seconds, size = time.perf_counter() - began, checkpoint.stat().st_size
            changed = cad_fast.load_pipeline("zoo:emoji", denoiser_weights=checkpoint)
            after, weights = self.pictures(changed), _changed_weights(self.intact.unet, changed.unet)
        found: dict[str, Any] = {"method": method, "concept": concept, "seconds": seconds, "bytes": size}
        found |= {"weights": weights}
        # Of another model, as weights changed: which is what the table is about.
        after = replace(after, settings=replace(after.settings, fingerprint=self.before.settings.fingerprint))
        found |= compare(self.before, after, concept, distances=[self.distance]).to_dict()
        others = [each for each in self.before.concepts if each != concept][:SHOWN]
        rows = [[_first(each, concept), *(_first(each, other) for other in others)] for each in (self.before, after)]
        write_png(self.folder / f"{method}-{concept}.png", contact_sheet(rows, ["before", method], [concept, *others]))
        write_json(path, found)
        print(f"{method}, {concept}: {found['target']['after']:.2f} left, {seconds:.0f} s", flush=True)
        return found

    def attacks(self, method: str | None, concept: str) -> dict[str, int]:
        """In how many pictures of each prompt of ``OTHER_PROMPTS`` the object is recognised; None: without an edit."""
        path = self.folder / f"{method or 'no-edit'}-{concept}-attacks.json"
        if not path.exists():
            pipeline, edit = self.intact, None
            if method == OURS:
                edit = cad_fast.Edit.from_pretrained(self.folder / "edits" / concept)
            elif method is not None:
                weights = self.folder / "checkpoints" / method / f"{concept}.safetensors"
                pipeline = cad_fast.load_pipeline("zoo:emoji", denoiser_weights=weights)
            drawer = Drawer(pipeline, concept, self.scorer, "object", zoo.generation(), SEED)
            found = {}
            for form in OTHER_PROMPTS:
                prompt = form.format(*[concept] * 3)
                found[form] = sum(drawer.hits(drawer.draw(self.per_concept, [prompt], edit=edit)))
            write_json(path, found)
        return dict(read_json(path))


def _first(evaluation: Evaluation, concept: str) -> Any:
    assert evaluation.images is not None, "they were kept"
    return evaluation.images[concept][0]


def _changed_weights(before: Any, after: Any) -> int:
    old = before.state_dict()
    return int(sum((old[name] != value).sum() for name, value in after.state_dict().items()))


COLUMNS = (
    "method",
    "left",
    "others",
    "worst other",
    "style",
    "FD of the others",
    "seconds to make",
    "bytes",
    "weights changed",
    "undone",
    "per request",
)
HEAD = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n"


def line(method: str, cells: list[dict[str, Any]]) -> str:
    """A method's row of the table: means over the objects, and the worst other of all."""

    def mean(get: Callable[[dict[str, Any]], float]) -> float:
        return statistics.fmean(get(cell) for cell in cells)

    worst = min(
        (each["concepts"][each["worst_other"]]["after"], each["worst_other"], each["concept"]) for each in cells
    )
    ours = method == OURS
    parts = [
        method,
        " ".join(f"{cell['target']['after']:.2f}" for cell in cells),
        f"{mean(lambda cell: cell['others']['after']):.2f}",
        f"{worst[0]:.2f} ({worst[1]}, without {worst[2]})",
        f"{mean(lambda cell: cell['axes']['style']['after']):.2f}",
        f"{mean(lambda cell: cell['distances']['others']['FD']['value']):.2f}",
        f"{mean(lambda cell: cell['seconds']):,.0f}",
        f"{mean(lambda cell: cell['bytes']):,.0f}",
        f"{mean(lambda cell: cell['weights']):,.0f}",
        "yes, exactly" if ours else "by loading the old weights",
        "yes" if ours else "no: one checkpoint each",
    ]
    return f"| {' | '.join(parts)} |\n"


PAPERS = ("method", "UA", "IRA", "CRA", "ERB", "FD")


def papers_table(cells_of: dict[str, list[dict[str, Any]]]) -> str:
    """The figures of UnlearnCanvas (UA, IRA, CRA) and FADE (ERB, with all others as the neighbours), pooled.

    The first row is of no edit: what the same figures are of the pictures of before.
    """
    lines = [f"| {' | '.join(PAPERS)} |", f"|{'---|' * len(PAPERS)}"]
    first = next(iter(cells_of.values()))
    lines.append(_papers_row("no edit", first, "before"))
    lines += [_papers_row(method, cells, "after") for method, cells in cells_of.items()]
    return "\n".join(lines) + "\n"


def _papers_row(name: str, cells: list[dict[str, Any]], when: str) -> str:
    def pooled(get: Callable[[dict[str, Any]], dict[str, Any]]) -> tuple[int, int]:
        changes = [get(cell) for cell in cells]
        return sum(round(change[when] * change["n"]) for change in changes), sum(change["n"] for change in changes)

    hits, n = pooled(lambda cell: cell["target"])
    gone, others = (n - hits, n), pooled(lambda cell: cell["others"])
    figures = [_with_interval(pair[0] / pair[1], wilson(*pair)) for pair in (gone, others)]
    style = pooled(lambda cell: cell["axes"]["style"])
    figures.append(_with_interval(style[0] / style[1], wilson(*style)))
    figures.append(_with_interval(harmonic_mean(gone, others), harmonic_mean_interval(gone, others)))
    far = statistics.fmean(cell["distances"]["others"]["FD"]["value"] for cell in cells)
    figures.append("0" if when == "before" else f"{far:.2f}")
    return f"| {' | '.join([name, *figures])} |"


def attacks_table(attacks_of: dict[str, list[dict[str, int]]], per_concept: int) -> str:
    """ASR per attack: the share of its pictures, of all objects, in which the object is recognised."""
    lines = [f"| method | {' | '.join(OTHER_PROMPTS)} |", f"|{'---|' * (1 + len(OTHER_PROMPTS))}"]
    for method, found in attacks_of.items():
        n = per_concept * len(found)
        counts = [sum(each[form] for each in found) for form in OTHER_PROMPTS]
        lines.append(f"| {' | '.join([method, *(_with_interval(hits / n, wilson(hits, n)) for hits in counts)])} |")
    return "\n".join(lines) + "\n"


def _with_interval(value: float, interval: Interval) -> str:
    return f"{value:.2f} [{interval.lower:.2f}, {interval.upper:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.methods", description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--concepts", nargs="+", choices=zoo.OBJECTS, default=list(OBJECTS))
    parser.add_argument("--per-concept", type=int, default=24, help="pictures of each object (default 24)")
    arguments = parser.parse_args()
    study = Methods(arguments.output, arguments.per_concept)
    cells_of = {method: [study.cell(method, each) for each in arguments.concepts] for method in arguments.methods}
    rows = "".join(line(method, cells) for method, cells in cells_of.items())
    attacks_of = {
        name or "no edit": [study.attacks(name, each) for each in arguments.concepts]
        for name in (None, *arguments.methods)
    }
    table = f"{HEAD}{rows}\n{papers_table(cells_of)}\n{attacks_table(attacks_of, arguments.per_concept)}"
    write_text(arguments.output / "methods.md", table)
    print(table)


if __name__ == "__main__":
    main()
