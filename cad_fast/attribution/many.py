"""Scores for many concepts from one set of ablated passes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import read_json, write_json
from ..objectives import Objective
from ..recording_data import Recording
from .measure import Executor, Target
from .methods import Estimate, Job
from .passes import recorded_j
from .scores import Scores
from .stop import Watch
from .store import resumable

if TYPE_CHECKING:
    from .attributor import Attributor

CONCEPTS_NAME = "concepts.json"


def run_many(
    attributor: Attributor,
    concepts: Mapping[str, Recording | tuple[Objective, Recording]],
    *,
    rows_per_pass: int | None = None,
    output_dir: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    executor: Executor = "local",
    workers: int | None = None,
) -> dict[str, Scores]:
    """Scores per concept, each from its recording and its objective (or the attributor's), under the same ablations.

    Concepts with one recording share its passes; different recordings go through the denoiser beside each other. One
    factorisation of the regression serves all. With ``output_dir`` the scores are saved there, numbered, with
    ``concepts.json`` to say which is whose, and the run is resumable as ``Attributor.run`` is. The other arguments and
    the errors are those of ``Attributor.run``; a method of one concept at a time raises ValueError.
    """
    from .attributor import versions

    if not concepts:
        raise ValueError("there are no concepts")
    targets = {name: _target(value, attributor.objective) for name, value in concepts.items()}
    for name, target in targets.items():
        attributor.space.fingerprint.require_same(target.recording.fingerprint, f"the component space (for {name!r})")
    attributor._require_executor(executor)
    rows_per_pass = rows_per_pass or attributor.estimator.rows_per_pass
    common = attributor.common_settings(rows_per_pass)
    own = {name: attributor.target_settings(target) for name, target in targets.items()}
    settings = {**common, "concepts": own, "model": attributor.space.fingerprint.to_dict()}
    started = time.perf_counter()
    with resumable(output_dir, settings, resume=resume) as state:
        where = (attributor.denoiser, tuple(targets.values()), attributor.space)
        job = Job(*where, rows_per_pass, state, progress, Watch(), executor, workers)
        estimates = attributor.estimator.run_all(job)
        passes = estimates[0].passes or attributor.estimator.cost(job)
        cost = {
            "forward_passes": passes["forward"],
            "backward_passes": passes["backward"],
            "rows_per_pass": rows_per_pass,
            "shared_by_concepts": len(targets),
            "seconds": round(time.perf_counter() - started, 2),
        }

        def scores(name: str, estimate: Estimate) -> Scores:
            target = targets[name]
            provenance: dict[str, Any] = {
                "concept": name,
                **common,
                **own[name],
                "intact_j": recorded_j(target.recording, target.objective),
                "estimate": estimate.facts,
                "cost": cost,
                "versions": versions(),
            }
            return Scores(estimate.values, attributor.space, provenance, estimate.standard_error)

        found = {name: scores(name, one) for name, one in zip(targets, estimates, strict=True)}
        if output_dir is not None:
            save_many(found, output_dir)
        state.finish()
    return found


def _target(value: Recording | tuple[Objective, Recording], objective: Objective) -> Target:
    if isinstance(value, Recording):
        return Target(objective, value)
    if not (isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Recording)):
        raise TypeError(f"a concept needs a Recording or (Objective, Recording), got {type(value).__name__}")
    return Target(*value)


def save_many(scores: Mapping[str, Scores], folder: str | Path) -> Path:
    """Write ``00000.safetensors`` and on, then ``concepts.json``, which names them; returns the folder."""
    folder = Path(folder)
    names = {concept: f"{number:05d}.safetensors" for number, concept in enumerate(scores)}
    for concept, name in names.items():
        scores[concept].save(folder / name)
    write_json(folder / CONCEPTS_NAME, names)
    return folder


def load_many(folder: str | Path) -> dict[str, Scores]:
    """Read what ``save_many`` wrote. Raises FileNotFoundError, or ValueError naming what is damaged."""
    path = Path(folder) / CONCEPTS_NAME
    names = read_json(path)
    expected = [f"{number:05d}.safetensors" for number in range(len(names))]
    if list(names.values()) != expected:
        raise ValueError(f"{path} is damaged: its files are not numbered from 00000.safetensors on")
    return {concept: Scores.load(path.with_name(name)) for concept, name in names.items()}
