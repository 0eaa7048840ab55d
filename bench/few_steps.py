"""``python -m bench.few_steps --output DIR``: attribution and erasure with few steps and guidance off.

On both embedded models, drawn as distilled models are: r of first-order scores with measured J on held-out ablations,
and what an edit of ``erase`` does to its target and to others in pictures drawn the same way. Objectives compare with
the output for the empty prompt by themselves. Saved one by one; a second run goes on where the first stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cad_fast
from cad_fast import zoo
from cad_fast.attribution import Attributor
from cad_fast.demo.study import CROSS_ATTENTION, EVALUATION_SEED
from cad_fast.evaluation import evaluate
from cad_fast.files import read_json, require_writable_folder, write_json, write_text
from cad_fast.zoo.prompt_set import emoji_prompts

# (steps, guidance)
WAYS = ((4, 1.0), (20, 1.0), (20, 3.0))
CONCEPT, KEPT = "car", ("cat", "dog", "tree")
RATIO = 0.06
# A stream of its own: nothing was chosen on it.
SEED = EVALUATION_SEED + 7000


def measured(model: str, steps: int, guidance: float, samples: int, per_concept: int) -> dict[str, Any]:
    """Measure r of the scores, and recognition before and after the edit."""
    pipeline, scorer = zoo.load(model), zoo.scorer()
    generation = cad_fast.Generation.of(zoo.generation(model), num_inference_steps=steps, guidance_scale=guidance)
    texts = (zoo.prompts(CONCEPT) * samples)[:samples]
    recording = cad_fast.record(pipeline, texts, seeds=0, progress=False, **generation.to_kwargs())
    attributor = Attributor(pipeline, target_modules=CROSS_ATTENTION)
    scores = attributor.run(recording, holdout=60, holdout_fractions=(0.05,), concept=CONCEPT, progress=False)
    settings = {**generation.to_kwargs(), "samples": samples, "ratio": RATIO, "keep": KEPT, "progress": False}
    edit = cad_fast.erase(pipeline, CONCEPT, **settings)

    def recognised(applied: Any, concepts: tuple[str, ...]) -> float:
        drawing: dict[str, Any] = {"generation": generation, "progress": False, "seed": SEED}
        drawing |= {"per_concept": per_concept, "concepts": concepts, "edit": applied}
        return evaluate(pipeline, emoji_prompts(), scorer, **drawing).tally().accuracy

    return {
        "model": model,
        "steps": steps,
        "guidance": guidance,
        "base": scores.provenance["objective"]["base"],
        "r": scores.trust[0]["pearson"],
        "interval": scores.trust[0]["pearson_interval"],
        "left": edit.provenance["predicted"]["left"],
        "target": [recognised(None, (CONCEPT,)), recognised(edit, (CONCEPT,))],
        "others": [recognised(None, KEPT), recognised(edit, KEPT)],
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """One line per model and way to draw."""
    lines = [
        "| model | steps | guidance | base | r | left, predicted | car recognised | others recognised |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["interval"]
        lines.append(
            f"| {row['model']} | {row['steps']} | {row['guidance']:g} | {row['base']} "
            f"| {row['r']:.2f} [{low:.2f}, {high:.2f}] | {row['left']:.2f} "
            f"| {row['target'][0]:.2f} → {row['target'][1]:.2f} | {row['others'][0]:.2f} → {row['others'][1]:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.few_steps", description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=6, help="recorded pictures (default 6)")
    parser.add_argument("--per-concept", type=int, default=16, help="pictures per object (default 16)")
    parser.add_argument("--steps", nargs="+", type=int, default=[4, 20], help="of the ways to draw, those with so many")
    arguments = parser.parse_args()
    folder, rows = require_writable_folder(arguments.output), []
    for model in zoo.MODELS:
        for steps, guidance in WAYS:
            if steps not in arguments.steps:
                continue
            path = folder / f"{model}-{steps}-{guidance:g}-{arguments.samples}-{arguments.per_concept}.json"
            if not path.exists():
                write_json(path, measured(model, steps, guidance, arguments.samples, arguments.per_concept))
            rows.append(read_json(path))
            print(path.stem, "done", flush=True)
    write_text(folder / "few_steps.md", markdown(rows))
    print(markdown(rows))


if __name__ == "__main__":
    main()
