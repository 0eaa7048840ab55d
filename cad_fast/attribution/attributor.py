"""One interface for all ways to estimate scores."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch

from ..components import ComponentSpace, Kind
from ..denoiser_calls import denoiser_of
from ..objectives import ConceptErasure, Objective
from ..recording import record
from ..recording_data import Recording
from ..version import __version__
from .gradient import Via, gradient_scores
from .scores import Scores
from .store import RunState

Method = Literal["gradient"]
METHODS: tuple[Method, ...] = ("gradient",)


class Attributor:
    """Estimates scores of components of a pipeline's denoiser for an objective.

    ``components`` is a ComponentSpace, or None to make one from ``kind`` and ``target_modules``.
    Raises ValueError for an unknown method, kind or module pattern.
    """

    def __init__(
        self,
        pipeline: Any,
        objective: Objective | None = None,
        components: ComponentSpace | None = None,
        *,
        kind: Kind = "weight",
        target_modules: str | Sequence[str] | None = None,
        method: Method = "gradient",
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}: expected one of {', '.join(METHODS)}")
        self.denoiser = denoiser_of(pipeline)
        self.objective = objective or ConceptErasure()
        self.space = components or ComponentSpace.of(self.denoiser, kind, target_modules)
        self.method = method

    def run(
        self,
        recording: Recording,
        *,
        concept: str | None = None,
        via: Via | None = None,
        rows_per_pass: int = 16,
        output_dir: str | Path | None = None,
        resume: bool = False,
        progress: bool = True,
    ) -> Scores:
        """Scores of every component from ``recording``; with ``output_dir`` saved there, and resumable if stopped.

        Cost: one forward and backward pass of the conditional rows per recorded timestep in the objective's window.
        Raises ValueError for a recording of another model or without what the objective needs, FileExistsError when
        an unfinished run lies in ``output_dir`` and ``resume`` is False.
        """
        self.space.fingerprint.require_same(recording.fingerprint, "the component space")
        settings = self._settings(recording, via, rows_per_pass)
        state = RunState(output_dir, settings, resume=resume)
        started = time.perf_counter()
        try:
            values = gradient_scores(
                self.denoiser,
                recording,
                self.objective,
                self.space,
                via=via,
                rows_per_pass=rows_per_pass,
                state=state,
                progress=progress,
            )
        except KeyboardInterrupt:
            state.save()
            raise
        calls = sum(self.objective.active(call) for call in recording.calls)
        cost = {
            "recorded_denoiser_calls": recording.denoiser_calls,
            "forward_backward_calls": calls,
            "rows_per_call": recording.n_rows,
            "seconds": round(time.perf_counter() - started, 2),
        }
        provenance = {"concept": concept or recording.prompts[0], **settings, "cost": cost, "versions": versions()}
        scores = Scores(values, self.space, provenance)
        if output_dir is not None:
            scores.save(output_dir)
        state.finish()
        return scores

    def _settings(self, recording: Recording, via: Via | None, rows_per_pass: int) -> dict[str, Any]:
        return {
            "method": self.method,
            "objective": self.objective.config(),
            "kind": self.space.kind,
            "modules": [entry.module for entry in self.space],
            "via": via,
            "rows_per_pass": rows_per_pass,
            "prompts": recording.prompts,
            "seeds": recording.seeds,
            "num_inference_steps": recording.num_inference_steps,
            "guidance_scale": recording.guidance_scale,
            "steps": [call.step for call in recording.calls],
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
    progress: bool = True,
    **run_kwargs: Any,
) -> Scores:
    """Record ``prompts`` on ``pipeline`` (unless they are a Recording already) and score its components.

    ``seeds``: one per prompt, or the first of consecutive ones. Further arguments go to ``Attributor.run``.
    """
    attributor = Attributor(pipeline, objective, kind=kind, target_modules=target_modules)
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
