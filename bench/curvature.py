"""``python -m bench.curvature --output DIR``: what ``second_order`` loses by keeping few weights' directions.

On both embedded models: r with measured J on held-out ablations, of the scores alone, with directions of all weights,
and with directions of the weights along which J bends most (the default). Each runs in a process of its own, for its
memory at the largest. Saved one by one; a second run goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import cad_fast
from cad_fast import Ablation, ComponentSpace, zoo
from cad_fast.attribution import Attributor
from cad_fast.attribution.methods.second_order import SecondOrder
from cad_fast.attribution.trust import Trust, predicted_change
from cad_fast.files import require_writable_folder, write_json, write_text

PAIRS = (("emoji", "cat"), ("emoji", "car"), ("emoji", "moon"), ("emoji-flow", "car"), ("emoji-flow", "cat"))
SHARES = (1.0, SecondOrder.share)
FRACTION, STEPS = 0.05, 10
# No other study draws these pictures or ablations.
SEED, HELD_OUT = 190, 1 << 44


def measured(model: str, concept: str, share: float, holdout: int) -> dict[str, Any]:
    """r, seconds and bytes of scores with directions of such a share of the feed-forward weights."""
    pipeline = zoo.load(model)
    generation = cad_fast.Generation.of(zoo.generation(model), num_inference_steps=STEPS)
    recording = cad_fast.record(pipeline, zoo.prompts(concept), seeds=SEED, progress=False, **generation.to_kwargs())
    space = ComponentSpace.of(pipeline, "weight")
    attributor = Attributor(pipeline, components=space, method="second_order", fraction=FRACTION, share=share)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scores = attributor.run(recording, progress=False)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    held = [Ablation.random(space.n, FRACTION, HELD_OUT + number) for number in range(holdout)]
    j = attributor.measured(recording, held, progress=False)
    assert scores.curvature is not None
    alone = Trust.of(predicted_change(scores.values, held), j, FRACTION)
    both = Trust.of(predicted_change(scores.values, held, scores.curvature), j, FRACTION)
    return {
        "model": model,
        "concept": concept,
        "share": share,
        "n": space.n,
        "held_out": holdout,
        "alone": alone.to_dict(),
        "with_curvature": both.to_dict(),
        "curvature_bytes": scores.curvature.nbytes,
        "grown_bytes": 1024 * (after - before),
        "seconds": scores.provenance["cost"]["seconds"],
        "rows": scores.provenance["estimate"]["rows"],
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """One line per model, concept and share."""
    lines = [
        "| model | weights | concept | directions of | r: scores alone | with curvature | slope | kept, of the scores "
        "| process grew by | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["with_curvature"]["pearson_interval"]
        lines.append(
            f"| {row['model']} | {row['n']:,} | {row['concept']} | {row['share']:.0%} | {row['alone']['pearson']:.3f} "
            f"| {row['with_curvature']['pearson']:.3f} [{low:.3f}, {high:.3f}] | {row['with_curvature']['slope']:.2f} "
            f"| {row['curvature_bytes'] / (4 * row['n']):.1f} times | {row['grown_bytes'] / 1e9:.2f} GB "
            f"| {row['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.curvature", description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--holdout", type=int, default=120, help="held-out ablations (default 120)")
    parser.add_argument("--pairs", nargs="+", default=[":".join(pair) for pair in PAIRS], help="MODEL:CONCEPT")
    parser.add_argument("--one", nargs=3, metavar=("MODEL", "CONCEPT", "SHARE"), help="measure this one, no table")
    arguments = parser.parse_args()
    folder = require_writable_folder(arguments.output)
    if arguments.one:
        model, concept, share = arguments.one
        found = measured(model, concept, float(share), arguments.holdout)
        write_json(folder / f"{model}-{concept}-{float(share):g}.json", found)
        return
    rows = []
    for pair in arguments.pairs:
        model, concept = pair.split(":")
        for share in SHARES:
            path = folder / f"{model}-{concept}-{share:g}.json"
            if not path.exists():
                one = ["--one", model, concept, f"{share:g}", "--holdout", f"{arguments.holdout}"]
                subprocess.run([sys.executable, "-m", "bench.curvature", "--output", str(folder), *one], check=True)
            rows.append(json.loads(path.read_text()))
            print(path.stem, f"r {rows[-1]['with_curvature']['pearson']:.4f}", flush=True)
    write_text(folder / "curvature.md", markdown(rows))
    print(markdown(rows))


if __name__ == "__main__":
    main()
