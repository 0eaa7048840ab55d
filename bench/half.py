"""``python -m bench.half --output DIR``: bfloat16 from loading to serving, side by side with float32.

Both embedded models are loaded, recorded, scored, edited and served in either dtype. For every concept: how alike the
scores are, which weights an edit made in either dtype takes, and how far pictures in bfloat16 are from those of the
same seeds in float32. Saved one by one; a second run goes on where the first stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import cad_fast
from cad_fast import ConceptErasure, Edit, EditManager, Recording, Selection, zoo
from cad_fast.attribution import Attributor
from cad_fast.demo.study import EVALUATION_SEED, WINDOWS
from cad_fast.edits import overlap
from cad_fast.evaluation import Evaluation, compare, evaluate
from cad_fast.files import read_json, require_writable_folder, write_json, write_text
from cad_fast.serving.engine.batcher import Batcher
from cad_fast.serving.engine.edited_passes import RowWise
from cad_fast.serving.engine.jobs import PictureJob, RequestedEdit
from cad_fast.zoo.prompt_set import emoji_prompts

FULL, HALF = torch.float32, torch.bfloat16
CONCEPTS = ("car", "cat")
# What is drawn beside the target to see what is kept.
SHOWN = ("dog", "clock", "tree")
RATIO = 0.06
TOP = 0.03
# A stream of its own: nothing was chosen on it.
SEED = EVALUATION_SEED + 5000
KV, FEED_FORWARD = "cross-attention-kv", "feed-forward"
# (name, method, kind, modules, options, whether in the window of objects alone)
SCORES: tuple[tuple[str, Any, Any, str | None, dict[str, Any], bool], ...] = (
    ("gradient, keys and values", "gradient", "weight", KV, {}, False),
    ("gradient, keys and values, early", "gradient", "weight", KV, {}, True),
    ("gradient, feed-forward", "gradient", "weight", FEED_FORWARD, {}, False),
    ("gradient, all layers", "gradient", "weight", "all", {}, False),
    ("ablated gradient, keys and values", "ablated_gradient", "weight", KV, {}, False),
    ("ablated gradient, neurons", "ablated_gradient", "neuron", None, {}, False),
    ("ablated gradient, heads", "ablated_gradient", "head", None, {}, False),
    ("second order, keys and values", "second_order", "weight", KV, {"networks": 5, "directions": 32}, False),
    ("sensitivity, keys and values", "sensitivity", "weight", KV, {}, False),
    ("regression (100 ablations), heads", "regression", "head", None, {"ablations": 100}, False),
)


class Halves:
    """One model in both dtypes, with what is shared made once."""

    def __init__(self, folder: Path, model: str, per_concept: int) -> None:
        self.folder, self.model, self.per_concept = folder, model, per_concept
        self.pipelines = {dtype: zoo.load(model, dtype=dtype) for dtype in (FULL, HALF)}
        self.scorer = zoo.scorer()
        self._recordings: dict[tuple[Any, str], Recording] = {}
        self._plain: dict[tuple[Any, str], Evaluation] = {}

    def stored(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The content of ``name``.json, from ``compute()`` if there is none."""
        path = self.folder / f"{name}-{self.model}.json"
        if not path.exists():
            write_json(path, compute())
            print(name, self.model, "done", flush=True)
        return read_json(path)

    def recording(self, dtype: torch.dtype, concept: str) -> Recording:
        """Three pictures, as the model's figures are made."""
        if (dtype, concept) not in self._recordings:
            settings = zoo.generation(self.model).to_kwargs()
            self._recordings[dtype, concept] = cad_fast.record(
                self.pipelines[dtype], zoo.prompts(concept), seeds=0, progress=False, **settings
            )
        return self._recordings[dtype, concept]

    def scores(self, concept: str) -> dict[str, Any]:
        """Per kind of scores the cosine, the share of the top 3% that is the same, and J of either dtype."""
        rows = {}
        for name, method, kind, modules, options, early in SCORES:
            objective = ConceptErasure(timesteps=WINDOWS[self.model].objects if early else None)
            both = []
            for dtype, pipeline in self.pipelines.items():
                attributor = Attributor(
                    pipeline, objective, kind=kind, target_modules=modules, method=method, **options
                )
                both.append(attributor.run(self.recording(dtype, concept), concept=concept, progress=False))
            full, half = both
            rows[name] = {
                "n": len(full),
                "cosine": cosine(full.values, half.values),
                "same": float(overlap([full, half], TOP)[0, 1]),
                "j": [one.provenance["intact_j"] for one in both],
                "dtype_of_sums": str(half.values.dtype),
            }
        latents = [self.recording(dtype, concept).latents for dtype in (FULL, HALF)]
        assert latents[0] is not None and latents[1] is not None
        apart = float((latents[0] - latents[1].float()).norm() / latents[0].norm())
        return {"model": self.model, "concept": concept, "latents_apart": apart, "scores": rows}

    def drawn(self, dtype: torch.dtype, concept: str, edit: Edit | None = None) -> Evaluation:
        """Pictures of the concept and of three others, on the same seeds in either dtype."""
        if edit is None and (dtype, concept) in self._plain:
            return self._plain[dtype, concept]
        settings = {"generation": zoo.generation(self.model), "progress": False, "seed": SEED, "keep_images": True}
        arguments = {"concepts": (concept, *SHOWN), "per_concept": self.per_concept, "edit": edit, **settings}
        found = evaluate(self.pipelines[dtype], emoji_prompts(), self.scorer, **arguments)
        if edit is None:
            self._plain[dtype, concept] = found
        return found

    def edited(self, concept: str) -> dict[str, Any]:
        """Edits made in either dtype: their weights, and their pictures in either dtype."""
        edits = {
            dtype: cad_fast.erase(pipeline, concept, keep=SHOWN, ratio=RATIO, progress=False)
            for dtype, pipeline in self.pipelines.items()
        }
        before = {dtype: self.drawn(dtype, concept) for dtype in (FULL, HALF)}
        after = {
            "float32's edit in float32": self.drawn(FULL, concept, edits[FULL]),
            "float32's edit in bfloat16": self.drawn(HALF, concept, edits[FULL]),
            "bfloat16's edit in bfloat16": self.drawn(HALF, concept, edits[HALF]),
        }
        reference = after["float32's edit in float32"]
        rows = {"no edit, bfloat16": distances(before[FULL], before[HALF])}
        for name, found in after.items():
            base = before[FULL if name.endswith("float32") else HALF]
            change = compare(base, found, concept)
            others = change.to_dict()["others"]
            rows[name] = {
                **distances(reference, found),
                "target_after": change.target.after,
                "others_kept_percent": others["kept_percent"],
            }
        return {
            "model": self.model,
            "concept": concept,
            "n_weights": [edits[dtype].n_weights for dtype in (FULL, HALF)],
            "same_weights": shared_weights(edits[FULL], edits[HALF]),
            "what_the_edit_changes": distances(before[FULL], reference),
            "rows": rows,
        }

    def served(self, concept: str) -> dict[str, Any]:
        """Pictures of one batch with and without an edit, by the manager and by the server's engine."""
        edit = cad_fast.Edit.from_scores(
            Attributor(self.pipelines[FULL], target_modules=KV).run(self.recording(FULL, concept), progress=False),
            Selection(RATIO),
            name="edit",
        )
        texts, seeds = zoo.prompts(concept)[:2] * 2, [11, 12, 11, 12]
        names = [["edit"], ["edit"], "__base__", "__base__"]
        generation = zoo.generation(self.model)
        pictures: dict[str, list[Image.Image]] = {}
        for dtype, pipeline in self.pipelines.items():
            label = str(dtype).removeprefix("torch.")
            manager = EditManager(pipeline)
            manager.load_edit(edit)
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            pictures[f"manager, {label}"] = manager(
                texts, edit_names=names, generator=generators, **generation.to_kwargs()
            )[0]
            pictures[f"engine, {label}"] = by_engine(pipeline, edit, texts, seeds, generation)
            pictures[f"in the weights, {label}"] = in_the_weights(pipeline, edit, texts, seeds, generation)
        reference = pictures["in the weights, float32"]
        return {
            "model": self.model,
            "concept": concept,
            "to_float32": {name: of_pictures(reference, drawn) for name, drawn in pictures.items()},
            "to_the_same_dtype": {
                name: of_pictures(pictures[f"in the weights, {name.rpartition(', ')[2]}"], drawn)
                for name, drawn in pictures.items()
            },
        }


def by_engine(
    pipeline: Any, edit: Edit, texts: Sequence[str], seeds: Sequence[int], generation: cad_fast.Generation
) -> list[Image.Image]:
    """Pictures of the server's engine, the first two under the edit, all in one batch."""
    use = RequestedEdit(edit, 1.0, None)
    batcher = Batcher(pipeline, RowWise(pipeline), batch_timeout=0.5).start()
    try:
        tickets = [
            batcher.submit(PictureJob(str(number), text, seed, 1, generation.to_kwargs(), (use,) if number < 2 else ()))
            for number, (text, seed) in enumerate(zip(texts, seeds, strict=True))
        ]
        return [ticket.future.result()[0] for ticket in tickets]
    finally:
        batcher.close()


def in_the_weights(
    pipeline: Any, edit: Edit, texts: Sequence[str], seeds: Sequence[int], generation: cad_fast.Generation
) -> list[Image.Image]:
    """The same pictures with the edit fused into the weights, and without it."""

    def draw(rows: slice) -> list[Image.Image]:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[rows]]
        return pipeline(list(texts[rows]), generator=generators, **generation.to_kwargs())[0]

    with edit.applied(pipeline):
        edited = draw(slice(0, 2))
    return [*edited, *draw(slice(2, None))]


def cosine(first: Tensor, second: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(first.double(), second.double(), dim=0))


def shared_weights(first: Edit, second: Edit) -> float:
    """The share of the first edit's weights that the second takes too."""
    both = sum(
        len(np.intersect1d(indices.numpy(), second.components[module].numpy()))
        for module, indices in first.components.items()
        if module in second.components
    )
    return both / max(1, first.n_weights)


def distances(first: Evaluation, second: Evaluation) -> dict[str, float]:
    """How far the pictures of two evaluations are apart."""
    assert first.images is not None and second.images is not None
    return of_pictures(*([each for name in one.images for each in one.images[name]] for one in (first, second)))


def of_pictures(first: Sequence[Image.Image], second: Sequence[Image.Image]) -> dict[str, float]:
    """The root mean square over the pixels, of 255: the median over the pictures, their mean and the largest."""
    apart = [
        float(np.sqrt(np.square(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).mean()))
        for one, other in zip(first, second, strict=True)
    ]
    return {"median": float(np.median(apart)), "mean": float(np.mean(apart)), "largest": max(apart), "n": len(apart)}


def markdown(scores: Sequence[Any], edits: Sequence[Any], served: Sequence[Any]) -> str:
    """Three tables."""
    lines = ["| model | scores | components | " + " | ".join(c for c in CONCEPTS) + " |"]
    lines.append("|---|---|---|" + "---|" * len(CONCEPTS))
    for model in zoo.MODELS:
        own = {row["concept"]: row["scores"] for row in scores if row["model"] == model}
        for name, *_ in SCORES:
            cells = [f"{own[c][name]['cosine']:.4f}, {own[c][name]['same']:.1%}" if c in own else "" for c in CONCEPTS]
            n = next(iter(own.values()))[name]["n"] if own else 0
            lines.append(f"| {model} | {name} | {n:,} | {' | '.join(cells)} |")
    lines += ["", "| model | concept | pictures | median | mean | largest | target after | others kept |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in edits:
        shown = {"the edit itself, float32": row["what_the_edit_changes"], **row["rows"]}
        for name, cell in shown.items():
            after = (
                f"{cell['target_after']:.2f} | {cell['others_kept_percent']:.0f}%" if "target_after" in cell else "|"
            )
            numbers = " | ".join(f"{cell[key]:.1f}" for key in ("median", "mean", "largest"))
            lines.append(f"| {row['model']} | {row['concept']} | {name} | {numbers} | {after} |")
    lines += ["", "| model | concept | served | to float32: mean, largest | to the same dtype: mean, largest |"]
    lines.append("|---|---|---|---|---|")
    for row in served:
        for name, cell in row["to_float32"].items():
            same = row["to_the_same_dtype"][name]
            lines.append(
                f"| {row['model']} | {row['concept']} | {name} | {cell['mean']:.1f}, {cell['largest']:.1f} "
                f"| {same['mean']:.1f}, {same['largest']:.1f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.half", description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=zoo.MODELS, default=zoo.MODELS)
    parser.add_argument("--concepts", nargs="+", choices=CONCEPTS, default=CONCEPTS)
    parser.add_argument("--per-concept", type=int, default=8, help="pictures per object (default 8)")
    arguments = parser.parse_args()
    folder = require_writable_folder(arguments.output)
    scores, edits, served = [], [], []
    for model in arguments.models:
        bench = Halves(folder, model, arguments.per_concept)
        for concept in arguments.concepts:
            scores.append(bench.stored(f"scores-{concept}", lambda b=bench, c=concept: b.scores(c)))
            edits.append(bench.stored(f"edits-{concept}", lambda b=bench, c=concept: b.edited(c)))
        first = arguments.concepts[0]
        served.append(bench.stored(f"served-{first}", lambda b=bench, c=first: b.served(c)))
    table = markdown(scores, edits, served)
    write_text(folder / "half.md", table)
    print(table)


if __name__ == "__main__":
    main()
