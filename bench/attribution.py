"""``python -m bench.attribution --output DIR [--parts ...]``: how faithful each estimator is, at what cost.

Everything is measured on the embedded model and saved part by part: a second run goes on where the first stopped. The
figures of docs/attribution.md come from here.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import cad_fast
from cad_fast import Ablation, ComponentSpace, ConceptErasure, Recording
from cad_fast.attribution import Attributor
from cad_fast.attribution.compare import compare_estimators
from cad_fast.attribution.halves import split_half
from cad_fast.attribution.measuring.measure import objective_under_ablations
from cad_fast.attribution.regression.design import Design
from cad_fast.attribution.regression.solvers import fit
from cad_fast.attribution.trust import Trust, correlation, predicted_change
from cad_fast.files import read_json, require_writable_folder, write_bytes, write_json
from cad_fast.report import cost_plot, fractions_plot

from .published import cad, coar_seconds

CONCEPTS = ("car", "cat", "flower", "tree")
KINDS = ("weight", "neuron", "filter", "head")
FRACTION = 0.05
HELD_OUT = 1 << 42
GENERATION = cad_fast.Generation(num_inference_steps=10, guidance_scale=3.0)
RIDGE = (100, 200, 400)
# For the first concept; the others are measured with one partition and the first two numbers of ablations.
PARTITIONS = (1, 2, 4)
# As many as there are neurons and a few more, up to several times as many.
OLS = (2200, 2600, 3000, 4000, 6000, 9000, 12000)
OLS_CHUNK = 500
FRACTIONS = (0.01, 0.05, 0.1, 0.2, 0.5)


class Bench:
    """Figures as JSON in a folder, each measured unless it is there."""

    def __init__(self, folder: Path, holdout: int) -> None:
        self.folder, self.holdout = require_writable_folder(folder), holdout
        self._recordings: dict[str, Recording] = {}

    @cached_property
    def pipeline(self) -> Any:
        return cad_fast.zoo.load()

    def stored(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The content of ``name``.json, from ``compute()`` if there is none."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            write_json(path, compute())
            print(name, "done", flush=True)
        return read_json(path)

    def recording(self, concept: str) -> Recording:
        """Three pictures, ten steps: 30 rows."""
        if concept not in self._recordings:
            self._recordings[concept] = cad_fast.record(
                self.pipeline, cad_fast.zoo.prompts(concept), seeds=0, progress=False, **GENERATION.to_kwargs()
            )
        return self._recordings[concept]

    def pictures(self, concept: str, seed: int) -> Recording:
        """Six pictures, ten steps."""
        texts = cad_fast.zoo.prompts(concept) * 2
        return cad_fast.record(self.pipeline, texts, seeds=seed, progress=False, **GENERATION.to_kwargs())

    def measured(self, concept: str, space: ComponentSpace, drawn: list[Ablation]) -> Tensor:
        """J float64 under each ablation."""
        return objective_under_ablations(
            self.pipeline.unet, self.recording(concept), ConceptErasure(), space, drawn, progress=False
        )

    def compare(self, kind: str, concept: str) -> dict[str, Any]:
        """Points (method, cost, r) of the estimators that are affordable for this kind."""
        space = ComponentSpace.of(self.pipeline, kind)
        full = concept == CONCEPTS[0]
        points = compare_estimators(
            self.pipeline,
            self.recording(concept),
            components=space,
            fraction=FRACTION,
            holdout=self.holdout,
            partitions=PARTITIONS if full else PARTITIONS[:1],
            ablations=RIDGE if full else RIDGE[:2],
            progress=False,
        )
        return {"kind": kind, "concept": concept, "n": space.n, "held_out": self.holdout, "points": points}

    def coar_seconds(self) -> dict[str, Any]:
        """The time of one ablation where passes are not shared."""
        space = ComponentSpace.of(self.pipeline, "neuron")
        each = coar_seconds(self.pipeline, self.recording(CONCEPTS[0]), ConceptErasure(), space, 20)
        return {"seconds_per_ablation": each}

    def ols(self, concept: str) -> dict[str, Any]:
        """COAR's own procedure on neurons: Bernoulli ablations, ordinary least squares; time from single ablations."""
        recording = self.recording(concept)
        space = ComponentSpace.of(self.pipeline, "neuron")
        held = [Ablation.random(space.n, FRACTION, HELD_OUT + number) for number in range(self.holdout)]
        held_j = self.measured(concept, space, held)
        each = self.stored("coar-seconds", self.coar_seconds)["seconds_per_ablation"]
        drawn = [Ablation.random(space.n, FRACTION, 20_000 + number) for number in range(OLS[-1])]
        # One ablation's J does not depend on what runs beside it, so they are measured many at a time.
        j: list[float] = []
        for at in range(0, len(drawn), OLS_CHUNK):
            part = drawn[at : at + OLS_CHUNK]
            j += self.stored(f"ols-j-{at:05d}", lambda part=part: {"j": self.measured(concept, space, part).tolist()})[
                "j"
            ]
        points = []
        for m in OLS:
            alpha = fit(Design.of(drawn[:m]), torch.tensor(j[:m], dtype=torch.float64), "ols").alpha
            trust = Trust.of(predicted_change(alpha, held), held_j, FRACTION)
            cost = {"row_evaluations": m * recording.n_rows * recording.n_steps, "seconds": m * each}
            r = {"r": trust.pearson, "interval": list(trust.pearson_interval)}
            points.append({"method": "COAR (OLS, one ablation at a time)", "ablations": m, **cost, **r})
        return {"kind": "neuron", "concept": concept, "points": points}

    def published(self) -> dict[str, Any]:
        """The gradient method against CAD's published procedure: time, and cosine of the scores."""
        steps, prompt = 50, cad_fast.zoo.prompts("car")[0]
        space = ComponentSpace.of(self.pipeline, "weight")
        settings = {**replace(GENERATION, num_inference_steps=steps).to_kwargs(), "progress": False}

        def ours(seeds: list[int]) -> tuple[Tensor, float]:
            started = time.perf_counter()
            recording = cad_fast.record(self.pipeline, [prompt] * len(seeds), seeds=seeds, **settings)
            scores = Attributor(self.pipeline).run(recording, progress=False).values
            return scores, time.perf_counter() - started

        started = time.perf_counter()
        same = cad(self.pipeline, prompt, space, steps, GENERATION.guidance_scale, [0] * steps)
        seconds = time.perf_counter() - started
        fresh = [
            cad(self.pipeline, prompt, space, steps, GENERATION.guidance_scale, list(range(at, at + steps)))
            for at in (100, 200)
        ]
        one, one_seconds = ours([0])
        many, many_seconds = ours(list(range(300, 316)))

        def cosine(a: Tensor, b: Tensor) -> float:
            return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))

        return {
            "published_seconds": seconds,
            "seconds": one_seconds,
            "seconds_of_16_pictures": many_seconds,
            "cosine_same_noise": cosine(one, same),
            "cosine_one_picture_to_published_fresh_noise": cosine(one, fresh[0]),
            "cosine_16_pictures_to_published_fresh_noise": cosine(many, fresh[0]),
            "cosine_of_published_with_itself": cosine(*fresh),
        }

    def fractions(self, kind: str, concept: str) -> dict[str, Any]:
        """Trust of the gradient and the ablated gradient at several fractions."""
        recording = self.recording(concept)
        checks: dict[str, list[dict[str, Any]]] = {}
        for method in ("gradient", "ablated_gradient"):
            options = {"partitions": 2} if method == "ablated_gradient" else {}
            attributor = Attributor(self.pipeline, kind=kind, method=method, **options)
            scores = attributor.run(recording, progress=False)
            trusts = attributor.check(scores, recording, self.holdout // 2, holdout_fractions=FRACTIONS, progress=False)
            checks[method.replace("_", " ")] = [trust.to_dict() for trust in trusts]
        return {"kind": kind, "concept": concept, "checks": checks}

    def reliability(self, kind: str, concept: str) -> dict[str, Any]:
        """Whether reliability from one partition's spread is the correlation of independent runs."""
        runs = [
            Attributor(self.pipeline, kind=kind, method="ablated_gradient", seed=1000 * seed).run(
                self.recording(concept), progress=False
            )
            for seed in range(3)
        ]
        pairs = [float(correlation(runs[i].values, runs[j].values)) for i, j in ((0, 1), (0, 2), (1, 2))]
        halves = [
            split_half(
                lambda half, seed=seed: Attributor(
                    self.pipeline, kind=kind, method="ablated_gradient", seed=seed + half
                ),
                recording,
                progress=False,
            )
            for seed, recording in ((0, self.pictures(concept, 0)), (50, self.pictures(concept, 500)))
        ]
        twin = float(correlation(halves[0][1].values, halves[1][1].values))
        expected = [run.provenance["estimate"]["reliability"] for run in runs]
        spread = torch.stack([run.values for run in runs]).double().var(0).mean().sqrt()
        stated = torch.stack([run.standard_error.square() for run in runs if run.standard_error is not None])
        return {
            "kind": kind,
            "concept": concept,
            "halves_of_6_pictures": halves[0][0].to_dict(),
            "correlation_with_6_other_pictures": twin,
            "correlation_of_runs": sum(pairs) / 3,
            "reliability": sum(expected) / 3,
            "rms_error_from_three_runs": float(spread),
            "rms_standard_error": float(stated.double().mean().sqrt()),
        }


def plots(bench: Bench) -> None:
    """Pictures of what has been measured."""
    for kind in KINDS:
        path = bench.folder / f"compare-{kind}-{CONCEPTS[0]}.json"
        if path.exists():
            points = read_json(path)["points"]
            if kind == "neuron" and (bench.folder / "ols.json").exists():
                points += read_json(bench.folder / "ols.json")["points"]
            title = f"{kind}s, {CONCEPTS[0]}"
            write_bytes(bench.folder / f"attribution-cost-{kind}.png", cost_plot(points, title=title))
    curves = {}
    for path in sorted(bench.folder.glob("fractions-*.json")):
        figures = read_json(path)
        for method, checks in figures["checks"].items():
            curves[f"{method}, {figures['kind']}s, {figures['concept']}"] = checks
    if curves:
        write_bytes(bench.folder / "attribution-fractions.png", fractions_plot(curves))


PARTS = ("compare", "fractions", "reliability", "published", "coar-seconds", "ols")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.attribution", description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--concepts", nargs="+", default=CONCEPTS)
    parser.add_argument("--holdout", type=int, default=120, help="held-out ablations (default 120)")
    arguments = parser.parse_args()
    bench = Bench(arguments.output, arguments.holdout)
    pairs = [(kind, concept) for concept in arguments.concepts for kind in arguments.kinds]
    if "published" in arguments.parts:
        print(bench.stored("published", bench.published))
    if "reliability" in arguments.parts:
        for kind in arguments.kinds:
            name = f"reliability-{kind}-{CONCEPTS[0]}"
            print(bench.stored(name, lambda kind=kind: bench.reliability(kind, CONCEPTS[0])))
    if "compare" in arguments.parts:
        for kind, concept in pairs:
            bench.stored(f"compare-{kind}-{concept}", lambda kind=kind, concept=concept: bench.compare(kind, concept))
    if "fractions" in arguments.parts:
        for kind in ("weight", "neuron"):
            bench.stored(f"fractions-{kind}-{CONCEPTS[0]}", lambda kind=kind: bench.fractions(kind, CONCEPTS[0]))
    if "coar-seconds" in arguments.parts:
        print(bench.stored("coar-seconds", bench.coar_seconds))
    if "ols" in arguments.parts:
        bench.stored("ols", lambda: bench.ols(CONCEPTS[0]))
    plots(bench)


if __name__ == "__main__":
    main()
