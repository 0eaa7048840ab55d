"""Scores for many concepts: from one set of ablated passes where the method allows it, else one after another."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..choices import Executor
from ..files import require_writable_folder, write_json
from ..loading import model_facts
from ..objectives import Objective
from ..recording_data import Recording
from .held_out import HOLDOUT_FRACTIONS, held_out, require_holdout, watch_for
from .measure import Target
from .methods import Estimate, Job, SharingEstimator
from .passes import recorded_j
from .score_files import check_options
from .scores import CONCEPTS_NAME, Scores, numbered_files
from .stop import StopWhen, Watch
from .store import recording_settings, resumable

if TYPE_CHECKING:
    from .attributor import Attributor

# What scores say of how they came about beyond the settings: not compared when a run goes on.
_OUTCOMES = ("intact_j", "estimate", "cost", "versions", "model", "stop_when", "trust")


def run_many(
    attributor: Attributor,
    concepts: Mapping[str, Recording | tuple[Objective, Recording]],
    *,
    rows_per_pass: int | None = None,
    holdout: int = 0,
    holdout_fractions: Sequence[float] = HOLDOUT_FRACTIONS,
    stop_when: StopWhen | None = None,
    output_dir: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    executor: Executor = "local",
    workers: int | None = None,
    save_dtype: str = "float32",
    save_top: int | None = None,
) -> dict[str, Scores]:
    """Scores per concept, each from its recording and its objective (or the attributor's).

    Methods of ablations ("regression", "exact") measure all concepts under the same ones: concepts with one recording
    share its passes, different recordings go through the denoiser beside each other, one factorisation serves all, and
    so do the ablations of ``holdout`` and of ``stop_when``, which ends the run when every concept has reached r.
    Methods of gradients take the concepts one after another.

    With ``output_dir`` the scores are saved there, numbered, with ``concepts.json`` to say which is whose, and the run
    is resumable as ``Attributor.run`` is. The other arguments and the errors are those of ``Attributor.run``.
    """
    if not concepts:
        raise ValueError("there are no concepts")
    targets = {name: _target(value, attributor.objective) for name, value in concepts.items()}
    for name, target in targets.items():
        attributor.space.fingerprint.require_same(target.recording.fingerprint, f"the component space (for {name!r})")
    attributor._require_executor(executor)
    check_options(save_dtype, save_top)
    saving: dict[str, Any] = {"dtype": save_dtype, "top": save_top}
    require_holdout(holdout, attributor.method)
    rows_per_pass = rows_per_pass or min(attributor.rows_that_fit(target) for target in targets.values())
    measuring: dict[str, Any] = {"progress": progress, "executor": executor, "workers": workers}
    check = {"holdout": holdout, "holdout_fractions": holdout_fractions, "stop_when": stop_when}
    for target in targets.values():
        attributor._require_unchanged(target)
    if not isinstance(attributor.estimator, SharingEstimator):
        run = {"rows_per_pass": rows_per_pass, "resume": resume, **check, **measuring}
        return _one_after_another(attributor, targets, output_dir, run, saving)
    common = attributor.common_settings(rows_per_pass)
    own = {name: attributor.target_settings(target) for name, target in targets.items()}
    recordings = {name: recording_settings(target.recording) for name, target in targets.items()}
    settings = {**common, "concepts": own, "recordings": recordings, "model": attributor.space.fingerprint.to_dict()}
    where = (attributor.denoiser, tuple(targets.values()), attributor.space)
    started = time.perf_counter()
    with resumable(output_dir, settings, resume=resume) as state:
        watch = watch_for(stop_when, attributor.estimator, *where, **measuring)
        job = Job(*where, rows_per_pass, state, progress, watch, executor, workers)
        estimates = attributor.estimator.run_all(job)
        passes = estimates[0].passes or attributor.estimator.cost(job)
        cost = {
            "forward_passes": passes["forward"],
            "backward_passes": passes["backward"],
            "rows_per_pass": rows_per_pass,
            "shared_by_concepts": len(targets),
            "seconds": round(time.perf_counter() - started, 2),
        }
        found = {}
        for number, (name, estimate) in enumerate(zip(targets, estimates, strict=True)):
            provenance = {"concept": name, **common, **own[name]}
            provenance |= _outcome(targets[name], estimate, cost, watch, number)
            provenance["model"] = model_facts(attributor.denoiser)
            found[name] = Scores(estimate.values, attributor.space, provenance, estimate.standard_error)
        if holdout:
            what = (attributor.denoiser, targets, attributor.space, list(found.values()))
            trusts = held_out(*what, holdout, holdout_fractions, **measuring)
            for scores, checks in zip(found.values(), trusts, strict=True):
                scores.provenance["trust"] = [one.to_dict() for one in checks]
        if output_dir is not None:
            save_many(found, output_dir, **saving)
        state.finish()
    return found


def _outcome(target: Target, estimate: Estimate, cost: dict[str, Any], watch: Watch, number: int) -> dict[str, Any]:
    """The part of the provenance that is known in the end, for target ``number``."""
    from .attributor import versions

    stopped = watch.to_dict(number)
    return {
        "intact_j": recorded_j(target.recording, target.objective),
        "estimate": estimate.facts,
        "cost": cost,
        "versions": versions(),
        **({} if stopped is None else {"stop_when": stopped}),
    }


def _one_after_another(
    attributor: Attributor,
    targets: Mapping[str, Target],
    output_dir: str | Path | None,
    run: dict[str, Any],
    saving: dict[str, Any],
) -> dict[str, Scores]:
    """A run per concept, each in a folder of its own until all are there."""
    folder = None if output_dir is None else require_writable_folder(output_dir)
    found, parts = {}, []
    for number, (name, target) in enumerate(targets.items()):
        one = copy.copy(attributor)
        one.objective = target.objective
        part = None if folder is None else folder / f"{number:05d}"
        if part is None or not (part / "scores.safetensors").exists():
            found[name] = one.run(target.recording, concept=name, output_dir=part, **run)
        else:
            found[name] = _kept(part, name, one, target, run)
        parts += [] if part is None else [part]
    if folder is not None:
        save_many(found, folder, **saving)
        for part in parts:
            (part / "scores.safetensors").unlink()
            part.rmdir()
    return found


def _kept(part: Path, name: str, attributor: Attributor, target: Target, run: dict[str, Any]) -> Scores:
    """The scores that an unfinished run of many left for a concept. Raises as ``RunState`` does."""
    if not run["resume"]:
        raise FileExistsError(f"{part} is of an unfinished run: pass resume=True to go on with it, or delete it")
    scores = Scores.load(part)
    attributor.space.fingerprint.require_same(scores.space.fingerprint, f"the component space (for {part})")
    settings = {**attributor.common_settings(run["rows_per_pass"]), **attributor.target_settings(target)}
    now = json.loads(json.dumps({"concept": name, **settings}))
    then = {key: value for key, value in scores.provenance.items() if key not in _OUTCOMES}
    for key in sorted(now.keys() | then.keys()):
        if now.get(key) != then.get(key):
            raise ValueError(
                f"{part} was made with other settings ({key}: {then.get(key)!r} then, {now.get(key)!r} now)"
            )
    return scores


def _target(value: Recording | tuple[Objective, Recording], objective: Objective) -> Target:
    if isinstance(value, Recording):
        return Target(objective, value)
    if not (isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Recording)):
        raise TypeError(f"a concept needs a Recording or (Objective, Recording), got {type(value).__name__}")
    return Target(*value)


def save_many(
    scores: Mapping[str, Scores], folder: str | Path, *, dtype: str = "float32", top: int | None = None
) -> Path:
    """Write ``00000.safetensors`` and on, then ``concepts.json``, which names them; returns the folder.

    ``dtype`` and ``top`` as for ``Scores.save``.
    """
    folder = Path(folder)
    names = {concept: f"{number:05d}.safetensors" for number, concept in enumerate(scores)}
    for concept, name in names.items():
        scores[concept].save(folder / name, dtype=dtype, top=top)
    write_json(folder / CONCEPTS_NAME, names)
    return folder


def load_many(folder: str | Path) -> dict[str, Scores]:
    """Read what ``save_many`` wrote. Raises FileNotFoundError, or ValueError naming what is damaged."""
    folder = Path(folder)
    return {concept: Scores.load(folder / name) for concept, name in numbered_files(folder).items()}
