"""Run an estimator on one concept or on many: check, estimate, hold out, save."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ..components.space import ComponentSpace
from ..diffusion.loaded import model_facts
from ..files import require_writable_folder
from ..version import versions
from .held_out import held_out, require_holdout, require_stop, watch_for
from .measuring.passes import recorded_j
from .measuring.plans import ROWS_PER_PASS, Target
from .measuring.unchanged import require_unchanged
from .memory import fitting_rows
from .methods.base import Estimate, Estimator, Problem, SharingEstimator
from .scores import SCORES_NAME, Scores, save_many
from .settings import RunOptions
from .stop import Watch
from .store import recording_settings, remove_state, resumable

# Writes scores into a folder.
Save = Callable[[Mapping[str, Scores], Path], Path]

# What scores say of how they came about beyond the settings. It is not compared when a run goes on.
_OUTCOMES = ("intact_j", "estimate", "cost", "versions", "model", "stop_when", "trust")


def run_one(
    denoiser: nn.Module,
    space: ComponentSpace,
    estimator: Estimator,
    target: Target,
    options: RunOptions,
    *,
    concept: str,
) -> Scores:
    """Score the components for one concept. With ``options.output_dir`` save ``scores.safetensors`` there.

    Args:
        denoiser: The module whose components are scored.
        space: The components.
        estimator: The method with its options.
        target: What is measured on which recording.
        options: How to run it.
        concept: The name that the scores carry.

    Returns:
        The scores, with their settings, cost and what was held out in ``provenance``.

    Raises:
        FileExistsError: An unfinished run lies in the folder and ``options.resume`` is False.
        ValueError: The recording is of another model, of this one before it was edited, or lacks what the objective
            needs. Or the options do not go with the method.
    """
    run = _Run(denoiser, space, estimator, {concept: target}, options)
    run.check()
    settings = {**run.settings, **target_settings(target), "recording": recording_settings(target.recording)}
    cost = {
        "recorded_denoiser_calls": target.recording.denoiser_calls,
        "recorded_rows": target.recording.n_rows,
    }
    saving = options.saving
    return run.scores(settings, cost, lambda scores, folder: scores[concept].save(folder, **saving))[concept]


def run_many(
    denoiser: nn.Module,
    space: ComponentSpace,
    estimator: Estimator,
    targets: Mapping[str, Target],
    options: RunOptions,
) -> dict[str, Scores]:
    """Score the components for many concepts. With ``options.output_dir`` save them there as ``save_many`` does.

    A ``SharingEstimator`` measures all targets under the same ablations: concepts with one recording share its passes,
    and the ablations of ``holdout`` and ``stop_when`` are shared too. Other methods take the concepts one after
    another, each in a folder of its own until all are there.

    Args:
        denoiser: The module whose components are scored.
        space: The components.
        estimator: The method with its options.
        targets: Per concept, what is measured on which recording.
        options: How to run it.

    Returns:
        The scores per concept, in the order of ``targets``.

    Raises:
        FileExistsError, ValueError: As ``run_one``, or there are no targets.
    """
    if not targets:
        raise ValueError("there are no concepts")
    run = _Run(denoiser, space, estimator, targets, options)
    run.check()
    if not isinstance(estimator, SharingEstimator):
        return _one_after_another(run)
    settings = {
        **run.settings,
        "concepts": {name: target_settings(target) for name, target in targets.items()},
        "recordings": {name: recording_settings(target.recording) for name, target in targets.items()},
    }
    saving = options.saving
    cost = {"shared_by_concepts": len(targets)}
    return run.scores(settings, cost, lambda scores, folder: save_many(scores, folder, **saving))


@dataclass(frozen=True)
class _Run:
    """One estimator on all targets together."""

    denoiser: nn.Module
    space: ComponentSpace
    estimator: Estimator
    targets: Mapping[str, Target]
    options: RunOptions

    @functools.cached_property
    def rows_per_pass(self) -> int:
        """As asked for, else the method's, or fewer where a backward pass of a large denoiser leaves no more room."""
        if self.options.rows_per_pass is not None:
            return self.options.rows_per_pass
        most = self.estimator.rows_per_pass
        if isinstance(self.estimator, SharingEstimator):  # which have no backward passes
            return most
        return min(
            fitting_rows(self.denoiser, target.recording, target.objective, self.space, most)
            for target in self.targets.values()
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What the scores depend on, whatever the concept, as JSON."""
        return {
            "method": self.estimator.name,
            "options": self.estimator.config(),
            "kind": self.space.kind,
            "modules": [entry.module for entry in self.space],
            "rows_per_pass": self.rows_per_pass,
        }

    def check(self) -> None:
        """Raise ValueError, before any work, for what does not go together."""
        for concept, target in self.targets.items():
            self.space.fingerprint.require_same(target.recording.fingerprint, f"the component space (for {concept!r})")
        method = self.estimator.name
        if self.options.executor != "local" and not isinstance(self.estimator, SharingEstimator):
            raise ValueError(
                f"executor={self.options.executor!r} goes with methods 'regression' and 'exact', not {method!r}"
            )
        require_holdout(self.options.holdout, method)
        require_stop(self.options.stop_when, method)
        if method not in ("gradient", "sensitivity"):  # these compare the first pass of every run themselves
            for target in self.targets.values():
                require_unchanged(self.denoiser, target.recording, target.objective)

    def scores(self, settings: dict[str, Any], cost: dict[str, Any], save: Save) -> dict[str, Scores]:
        """Estimate, hold out and save.

        Args:
            settings: What an unfinished run must have been started with to go on.
            cost: What the provenance says of the cost beside the passes and the time.
            save: Writes the scores into ``options.output_dir``.
        """
        options = self.options
        settings = {**settings, "model": self.space.fingerprint.to_dict()}
        measuring: dict[str, Any] = {
            "progress": options.progress,
            "executor": options.executor,
            "workers": options.workers,
        }
        started = time.perf_counter()
        with resumable(options.output_dir, settings, resume=options.resume) as state:
            targets = tuple(self.targets.values())
            watch = watch_for(
                options.stop_when,
                self.estimator,
                self.denoiser,
                targets,
                self.space,
                rows_per_pass=options.rows_per_pass or ROWS_PER_PASS,
                **measuring,
            )
            problem = Problem(self.denoiser, targets, self.space, self.rows_per_pass, state, watch=watch, **measuring)
            estimates = self.estimator.run_all(problem)
            passes = estimates[0].passes or self.estimator.cost(problem)
            cost = {
                **cost,
                "forward_passes": passes["forward"],
                "backward_passes": passes["backward"],
                "rows_per_pass": self.rows_per_pass,
                "seconds": round(time.perf_counter() - started, 2),
            }
            scores = {
                concept: self._scores_of(number, concept, estimate, watch, cost)
                for number, (concept, estimate) in enumerate(zip(self.targets, estimates, strict=True))
            }
            if options.holdout:
                self._hold_out(scores, measuring)
            if options.output_dir is not None:
                save(scores, Path(options.output_dir))
            state.finish()
        return scores

    def _scores_of(self, number: int, concept: str, estimate: Estimate, watch: Watch, cost: dict[str, Any]) -> Scores:
        """The scores of target ``number``, with where they come from."""
        target = self.targets[concept]
        provenance = {
            "concept": concept,
            **self.settings,
            **target_settings(target),
            "intact_j": recorded_j(target.recording, target.objective),
            "estimate": estimate.facts,
            "cost": cost,
            "versions": versions(),
            "model": model_facts(self.denoiser),
        }
        if self.options.stop_when is not None:
            provenance["stop_when"] = watch.to_dict(number)
        return Scores(estimate.values, self.space, provenance, estimate.standard_error, estimate.curvature)

    def _hold_out(self, scores: Mapping[str, Scores], measuring: Mapping[str, Any]) -> None:
        """Add to the scores how well they predict ablations that they have not seen."""
        checks = held_out(
            self.denoiser,
            self.targets,
            self.space,
            list(scores.values()),
            self.options.holdout,
            self.options.holdout_fractions,
            rows_per_pass=self.options.rows_per_pass or ROWS_PER_PASS,
            **measuring,
        )
        for one, trusts in zip(scores.values(), checks, strict=True):
            one.provenance["trust"] = [trust.to_dict() for trust in trusts]


def _one_after_another(run: _Run) -> dict[str, Scores]:
    """A run per concept, each in a folder of its own until all are there."""
    output_dir = run.options.output_dir
    folder = None if output_dir is None else require_writable_folder(output_dir)
    scores: dict[str, Scores] = {}
    parts = []
    for number, (concept, target) in enumerate(run.targets.items()):
        part = None if folder is None else folder / f"{number:05d}"
        if part is not None:
            parts.append(part)
        if part is not None and (part / SCORES_NAME).exists():
            alone = replace(run, targets={concept: target})
            scores[concept] = _finished(part, alone, concept, target)
            continue
        options = replace(run.options, output_dir=part, save_dtype="float32", save_top=None)
        scores[concept] = run_one(run.denoiser, run.space, run.estimator, target, options, concept=concept)
    if folder is not None:
        save_many(scores, folder, **run.options.saving)
        for part in parts:
            remove_state(part)  # left by a run that ended between saving its scores and this
            (part / SCORES_NAME).unlink()
            part.rmdir()
    return scores


def _finished(part: Path, run: _Run, concept: str, target: Target) -> Scores:
    """Read the scores that an unfinished run of many left for a concept.

    Raises:
        FileExistsError: ``options.resume`` is False.
        ValueError: They were made with other settings. The message names what differs.
    """
    if not run.options.resume:
        raise FileExistsError(f"{part} is of an unfinished run: pass resume=True to go on with it, or delete it")
    scores = Scores.load(part)
    run.space.fingerprint.require_same(scores.space.fingerprint, f"the component space (for {part})")
    now = json.loads(json.dumps({"concept": concept, **run.settings, **target_settings(target)}))
    then = {key: value for key, value in scores.provenance.items() if key not in _OUTCOMES}
    for key in sorted(now.keys() | then.keys()):
        if now.get(key) != then.get(key):
            raise ValueError(
                f"{part} was made with other settings ({key}: {then.get(key)!r} then, {now.get(key)!r} now)"
            )
    return scores


def target_settings(target: Target) -> dict[str, Any]:
    """What scores depend on of the objective and the recording, as JSON."""
    recording = target.recording
    based = {} if recording.base_prompts is None else {"base_prompts": recording.base_prompts}
    return {
        **based,
        "objective": target.objective.config(),
        "prompts": recording.prompts,
        "seeds": recording.seeds,
        **recording.generation.to_dict(),
        "steps": [call.step for call in recording.calls],
    }
