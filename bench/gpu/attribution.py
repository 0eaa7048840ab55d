"""Attribution on a UNet of Stable Diffusion 1.5's size: seconds and peak memory of the gradient methods."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from cad_fast import Attributor, Generation, Recording
from cad_fast.components.fingerprint import Fingerprint
from cad_fast.recording.call import DenoiserCall

from . import unet
from .worker import Worker

STEPS = 50
ABLATIONS = 20
GUIDANCE = 7.5


def cases(worker: Worker) -> Iterator[tuple[str, Callable[[], None]]]:
    study = Study(worker)
    yield "gradient of feed-forward weights", study.gradient
    yield "ablated gradient of neurons", study.ablated_gradient


@torch.no_grad()
def recording_of(worker: Worker, denoiser: nn.Module, steps: int) -> Recording:
    """A recording of one row: random samples at so many timesteps, and what the denoiser gives for them."""
    without = unet.batch_for(denoiser, 1, worker, seed=STEPS)["encoder_hidden_states"]
    calls = []
    for step in range(steps):
        at = 1000 - (step + 1) * (1000 // steps) + 1
        inputs = unet.batch_for(denoiser, 1, worker, seed=step) | {"timestep": torch.tensor(at, device=worker.device)}
        unconditional = inputs | {"encoder_hidden_states": without}
        calls.append(
            DenoiserCall(
                step=step,
                timestep=float(at),
                inputs=inputs,
                sample_key="sample",
                output=denoiser(**inputs).sample,
                unconditional_inputs=unconditional,
                unconditional_output=denoiser(**unconditional).sample,
            )
        )
    return Recording(
        calls=calls,
        prompts=["random"],
        seeds=[0],
        generation=Generation(steps, GUIDANCE),
        scheduler_config={},
        prediction_type="epsilon",
        fingerprint=Fingerprint.of(denoiser),
    )


class Study:
    """The UNet and its recording."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.denoiser = unet.build(worker).unet
        steps = 4 if worker.dry else 2 if worker.warming else STEPS
        self.recording = recording_of(worker, self.denoiser, steps)
        self.seconds_of_gradient: float | None = None

    def gradient(self) -> None:
        """Of every single weight, in one forward and backward pass over all timesteps."""
        attributor = Attributor(self.denoiser, kind="weight", target_modules="feed-forward", method="gradient")
        self.seconds_of_gradient = self._run("gradient of feed-forward weights", attributor, self.recording)

    def ablated_gradient(self) -> None:
        """20 ablations of 5% of the neurons each, over all timesteps, or as many as there is time for."""
        attributor = Attributor(self.denoiser, kind="neuron", method="ablated_gradient", fraction=1 / ABLATIONS)
        recording = self.recording
        if self.seconds_of_gradient and not self.worker.warming:
            room = max(0.0, self.worker.left()) / (1.5 * ABLATIONS * self.seconds_of_gradient)
            steps = max(1, min(recording.n_steps, int(room * recording.n_steps)))
            recording = recording.select(steps=range(0, recording.n_steps, -(-recording.n_steps // steps)))
        self._run("ablated gradient of neurons", attributor, recording)

    def _run(self, case: str, attributor: Attributor, recording: Recording) -> float | None:
        if self.worker.warming:
            attributor.run(recording, progress=False)
            return None
        attributor.run(recording.select(steps=[0]), progress=False)  # untimed: compiles, and fills caches
        self.worker.synchronize()
        if not self.worker.dry:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        scores = attributor.run(recording, progress=False)
        self.worker.synchronize()
        seconds = time.perf_counter() - begin
        facts: dict[str, Any] = {
            "seconds": round(seconds, 2),
            "peak_gb": None if self.worker.dry else round(torch.cuda.max_memory_allocated() / 1e9, 2),
            "components": attributor.space.n,
            "timesteps": recording.n_steps,
            "cost": scores.provenance["cost"],
        }
        if not scores.values.isfinite().all() or not scores.values.any():
            raise AssertionError("WRONG: the scores are not finite, or all zero")
        self.worker.put(case=case, **facts)
        return seconds
