"""One interface for all ways to estimate scores."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..ablation import Ablation
from ..choices import Executor, Kind, Method
from ..components import ComponentSpace
from ..denoiser_calls import denoiser_of
from ..loading import model_facts
from ..objectives import ConceptErasure, Objective
from ..recording import record
from ..recording_data import Recording
from ..version import __version__
from .ablated import objective_under_ablations
from .gradient import require_unchanged
from .held_out import HOLDOUT_FRACTIONS, ROWS_PER_PASS, held_out, require_holdout, watch_for
from .measure import Target
from .memory import fitting_rows
from .methods import Job, default_method, make_estimator
from .passes import recorded_j
from .score_files import check_options
from .scores import Scores
from .stop import StopWhen
from .store import recording_settings, resumable
from .trust import Trust


class Attributor:
    """Estimates scores of components of a pipeline's denoiser for an objective.

    ``components`` is a ComponentSpace, or None to make one from ``kind`` and ``target_modules``. ``method``, by default
    "gradient" for single weights and "ablated_gradient" for other kinds (see ``methods.default_method``):

    - "gradient": first order at the intact network (CAD); one forward and backward pass of the recording;
    - "ablated_gradient": gradients at randomly ablated networks; 1 / ``fraction`` times that cost, several ablations
      per pass, and far closer to what ablations do;
    - "second_order": as many rows, shared out by how much J there is, and from their gradients also how J bends: single
      weights only, the predictions that come closest;
    - "regression": a linear fit of J on ``ablations`` random ablations (COAR), forward passes only;
    - "exact": each component ablated alone, for small component spaces;
    - "sensitivity": not an effect on J but how far a component's removal moves the output, for ``sensitivity`` of
      ``erase``: what concepts to keep would lose. It looks at the objective's timesteps and nothing else of it.

    ``options`` are the method's: see ``attribution.methods``.
    Raises ValueError for an unknown method, kind or module pattern, TypeError for an option the method does not have.
    """

    def __init__(
        self,
        pipeline: Any,
        objective: Objective | None = None,
        components: ComponentSpace | None = None,
        *,
        kind: Kind = "weight",
        target_modules: str | Sequence[str] | None = None,
        method: Method | None = None,
        **options: Any,
    ) -> None:
        self.denoiser = denoiser_of(pipeline)
        self.objective = objective or ConceptErasure()
        self.space = components or ComponentSpace.of(self.denoiser, kind, target_modules)
        self.estimator = make_estimator(method or default_method(self.space.kind, self.space.n), options)

    @property
    def method(self) -> Method:
        return self.estimator.name

    def run(
        self,
        recording: Recording,
        *,
        concept: str | None = None,
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
    ) -> Scores:
        """Scores of every component from ``recording``; with ``output_dir`` saved there, and resumable if stopped.

        ``holdout``: so many random ablations of each of ``holdout_fractions`` are measured besides, and the scores
        carry how well they predict them (``scores.trust``). ``stop_when`` ends an ablated gradient or a regression
        before its last partition or ablation; the reason is kept with the scores. ``executor="ray"``: the ablations of
        a regression or of exact scores are measured by so many ``workers`` of a Ray cluster (extra ``ray``).
        ``save_dtype`` and ``save_top`` are ``dtype`` and ``top`` of ``Scores.save``; what is returned is whole.
        Raises ValueError for a recording of another model, of this one before it was edited, or without what the
        objective needs, FileExistsError when an unfinished run lies in ``output_dir`` and ``resume`` is False.
        """
        self.space.fingerprint.require_same(recording.fingerprint, "the component space")
        rows_per_pass = rows_per_pass or self.rows_that_fit(Target(self.objective, recording))
        settings = self._settings(recording, rows_per_pass)
        self._require_executor(executor)
        check_options(save_dtype, save_top)
        require_holdout(holdout, self.method)
        target = Target(self.objective, recording)
        self._require_unchanged(target)
        how = {"progress": progress, "executor": executor, "workers": workers}
        watch = watch_for(stop_when, self.estimator, self.denoiser, [target], self.space, **how)
        started = time.perf_counter()
        run = {**settings, "model": self.space.fingerprint.to_dict(), "recording": recording_settings(recording)}
        with resumable(output_dir, run, resume=resume) as state:
            job = Job(self.denoiser, (target,), self.space, rows_per_pass, state, progress, watch, executor, workers)
            estimate = self.estimator.run(job)
            passes = estimate.passes or self.estimator.cost(job)
            cost = {
                "recorded_denoiser_calls": recording.denoiser_calls,
                "recorded_rows": recording.n_rows,
                "forward_passes": passes["forward"],
                "backward_passes": passes["backward"],
                "rows_per_pass": rows_per_pass,
                "seconds": round(time.perf_counter() - started, 2),
            }
            provenance = {
                "concept": concept or recording.prompts[0],
                **settings,
                "intact_j": recorded_j(recording, self.objective),
                "estimate": estimate.facts,
                "cost": cost,
                "versions": versions(),
                "model": model_facts(self.denoiser),
            }
            if stop_when is not None:
                provenance["stop_when"] = watch.to_dict()
            scores = Scores(estimate.values, self.space, provenance, estimate.standard_error, estimate.curvature)
            if holdout:
                checks = self.check(scores, recording, holdout, holdout_fractions, progress=progress)
                provenance["trust"] = [check.to_dict() for check in checks]
            if output_dir is not None:
                scores.save(output_dir, dtype=save_dtype, top=save_top)
            state.finish()
        return scores

    def run_many(
        self, concepts: Mapping[str, Recording | tuple[Objective, Recording]], **settings: Any
    ) -> dict[str, Scores]:
        """Scores for many concepts from the same ablated passes: see ``many.run_many``."""
        from .many import run_many

        return run_many(self, concepts, **settings)

    def rows_that_fit(self, target: Target) -> int:
        """The method's rows per pass, or fewer where a backward pass of a large denoiser would take too much memory."""
        most = self.estimator.rows_per_pass
        if self.method in ("regression", "exact"):  # which have no backward passes
            return most
        return fitting_rows(self.denoiser, target.recording, target.objective, self.space, most)

    def _require_unchanged(self, target: Target) -> None:
        if self.method not in ("gradient", "sensitivity"):  # which look at every run's first pass
            require_unchanged(self.denoiser, target.recording, target.objective)

    def _require_executor(self, executor: Executor) -> None:
        if executor != "local" and self.method not in ("regression", "exact"):
            raise ValueError(f"executor={executor!r} goes with methods 'regression' and 'exact', not {self.method!r}")

    def check(
        self,
        scores: Scores,
        recording: Recording,
        ablations: int = 200,
        fractions: Sequence[float] = HOLDOUT_FRACTIONS,
        *,
        seed: int = 0,
        rows_per_pass: int = ROWS_PER_PASS,
        progress: bool = True,
    ) -> list[Trust]:
        """How well ``scores`` predict J under so many fresh random ablations of each fraction of the components.

        Raises ValueError when the scores are over other components.
        """
        if scores.space != self.space:
            raise ValueError(f"the scores are over {scores.space}, expected {self.space}")
        targets = {scores.concept: Target(self.objective, recording)}
        how = {"seed": seed, "rows_per_pass": rows_per_pass, "progress": progress}
        return held_out(self.denoiser, targets, self.space, [scores], ablations, fractions, **how)[0]

    def measured(
        self, recording: Recording, ablations: Sequence[Ablation], *, rows_per_pass: int = 64, progress: bool = True
    ) -> Tensor:
        """J float64 [len(ablations)] under each ablation."""
        what = (self.denoiser, recording, self.objective, self.space)
        return objective_under_ablations(*what, ablations, rows_per_pass=rows_per_pass, progress=progress)

    def _settings(self, recording: Recording, rows_per_pass: int) -> dict[str, Any]:
        return {**self.common_settings(rows_per_pass), **self.target_settings(Target(self.objective, recording))}

    def common_settings(self, rows_per_pass: int) -> dict[str, Any]:
        """What a result depends on, whatever the concept, as JSON."""
        return {
            "method": self.method,
            "options": self.estimator.config(),
            "kind": self.space.kind,
            "modules": [entry.module for entry in self.space],
            "rows_per_pass": rows_per_pass,
        }

    @staticmethod
    def target_settings(target: Target) -> dict[str, Any]:
        """What a result depends on of the objective and the recording, as JSON."""
        recording = target.recording
        return {
            "objective": target.objective.config(),
            "prompts": recording.prompts,
            "seeds": recording.seeds,
            "num_inference_steps": recording.num_inference_steps,
            "guidance_scale": recording.guidance_scale,
            "steps": [call.step for call in recording.calls],
            "pipeline_kwargs": recording.pipeline_kwargs,
        }


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    return {
        "cad_fast": __version__,
        "torch": torch.__version__,
        "diffusers": metadata.version("diffusers"),
        "python": platform.python_version(),
    }


def attribute(
    pipeline: Any,
    prompts: str | Sequence[str] | Recording,
    *,
    seeds: int | Sequence[int] | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    objective: Objective | None = None,
    kind: Kind = "weight",
    target_modules: str | Sequence[str] | None = None,
    concept: str | None = None,
    method: Method | None = None,
    options: Mapping[str, Any] | None = None,
    progress: bool = True,
    **run_kwargs: Any,
) -> Scores:
    """Record ``prompts`` on ``pipeline`` (unless they are a Recording already) and score its components.

    ``seeds``: one per prompt, or the first of consecutive ones. ``options`` are the method's (see ``Attributor``);
    further arguments go to ``Attributor.run``.
    """
    attributor = Attributor(
        pipeline, objective, kind=kind, target_modules=target_modules, method=method, **(options or {})
    )
    recording = prompts
    if not isinstance(recording, Recording):
        recording = record(
            pipeline,
            [prompts] if isinstance(prompts, str) else list(prompts),
            seeds=seeds,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            progress=progress,
        )
    return attributor.run(recording, concept=concept, progress=progress, **run_kwargs)
