"""The noise that a denoiser would make a picture from: DDIM backwards (arXiv 2010.02502), or a flow's Euler steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..diffusion.context import plain_tensors
from ..diffusion.denoisers import denoiser_of
from .call import DenoiserCall
from .data import Recording

FLOW = "flow_prediction"


def refusal(pipeline: Any, recording: Recording) -> str | None:
    """Why noise cannot be found for this pipeline; None where it can."""
    scheduler = pipeline.scheduler
    if _adds_noise(scheduler):
        return f"{type(scheduler).__name__} adds new noise in every step, so that no noise leads back to a picture"
    if recording.prediction_type == FLOW:
        if "Euler" not in type(scheduler).__name__:
            return f"{type(scheduler).__name__} does not go in steps of Euler, of which the way back is known"
        return None
    if recording.prediction_type != "epsilon" or not hasattr(scheduler, "alphas_cumprod"):
        return (
            f"{type(scheduler).__name__} predicts {recording.prediction_type}, expected epsilon as DDIM does, or a flow"
        )
    if float(getattr(scheduler, "init_noise_sigma", 1.0)) != 1.0:
        return f"{type(scheduler).__name__} scales its noise, which DDIM does not"
    return None


def _adds_noise(scheduler: Any) -> bool:
    config = scheduler.config
    name = f"{type(scheduler).__name__} {getattr(config, 'algorithm_type', '')}".lower()
    named = any(part in name for part in ("ddpm", "ancestral", "sde", "lcm", "tcd"))
    return named or bool(getattr(config, "stochastic_sampling", False))


def inverted_noise(pipeline: Any, recording: Recording, *, fixed_points: int = 0) -> Tensor:
    """Noise per picture of ``recording``, under its prompts and without guidance.

    Args:
        pipeline: whose denoiser draws.
        recording: pictures as ``record_images`` makes them, with the timesteps of the pipeline's own schedule.
        fixed_points: as for ``backwards``.

    Returns:
        float32 [rows, C, H, W], for the pipeline's ``latents``.

    Raises:
        ValueError: ``refusal`` says why, or the recording holds no clean latents.
    """
    *_, (_, noise) = backwards(pipeline, recording, fixed_points=fixed_points)
    return noise


def backwards(pipeline: Any, recording: Recording, *, fixed_points: int = 0) -> Iterator[tuple[DenoiserCall, Tensor]]:
    """Go from the pictures towards their noise, step by step.

    A step uses the output at the timestep that it leads to, for the sample that it comes from. Drawing takes the output
    for the sample that the step leads to. ``fixed_points`` more outputs, each for the sample found so far, come near it
    (as arXiv 2309.04907 and 2403.14602 do).

    Args:
        pipeline: whose denoiser draws.
        recording: as for ``inverted_noise``.
        fixed_points: how many times each step is corrected.

    Yields:
        Each call of the recording, from the least noise to the most, and the samples at its timestep, float32
        [rows, C, H, W].

    Raises:
        ValueError: as ``inverted_noise``.
    """
    reason = refusal(pipeline, recording)
    if reason is not None:
        raise ValueError(reason)
    if recording.latents is None:
        raise ValueError("the recording holds no clean latents to start from")
    denoiser, path = denoiser_of(pipeline), _path(pipeline, recording)
    sample, level = recording.latents.float(), path.clean
    for call in sorted(recording.calls, key=_timestep):
        before, above = sample, path.level(_timestep(call))
        for _ in range(1 + fixed_points):
            with plain_tensors():
                output = call.run(denoiser, **{call.sample_key: sample.to(call.sample.dtype)}).float().cpu()
            sample = path.step(before, output, level, above)
        level = above
        yield call, sample


def _timestep(call: DenoiserCall) -> float:
    return float(torch.as_tensor(call.timestep).max())


class _Flow:
    """Straight lines: the level is sigma, and outputs are noise minus picture."""

    clean = 0.0

    def __init__(self, scheduler: Any) -> None:
        self.total = float(scheduler.config.num_train_timesteps)

    def level(self, timestep: float) -> float:
        return timestep / self.total

    def step(self, sample: Tensor, output: Tensor, level: float, above: float) -> Tensor:
        return sample + (above - level) * output


class _Ddim:
    """The level is the share of the picture in the squares (``alphas_cumprod``), and outputs are noise."""

    def __init__(self, scheduler: Any) -> None:
        self.kept = scheduler.alphas_cumprod
        self.clean = float(getattr(scheduler, "final_alpha_cumprod", self.kept[0]))

    def level(self, timestep: float) -> float:
        return float(self.kept[int(timestep)])

    def step(self, sample: Tensor, output: Tensor, level: float, above: float) -> Tensor:
        clean = (sample - (1 - level) ** 0.5 * output) / level**0.5
        return above**0.5 * clean + (1 - above) ** 0.5 * output


def _path(pipeline: Any, recording: Recording) -> _Flow | _Ddim:
    return _Flow(pipeline.scheduler) if recording.prediction_type == FLOW else _Ddim(pipeline.scheduler)
