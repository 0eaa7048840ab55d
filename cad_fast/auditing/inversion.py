"""The noise that a denoiser would make a picture from, by running DDIM backwards (arXiv 2010.02502)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..diffusion.context import plain_tensors
from ..diffusion.denoisers import denoiser_of
from ..recording.data import Recording


def refusal(pipeline: Any, recording: Recording) -> str | None:
    """Why noise cannot be found for this pipeline; None where it can."""
    scheduler = pipeline.scheduler
    if recording.prediction_type != "epsilon" or not hasattr(scheduler, "alphas_cumprod"):
        return f"{type(scheduler).__name__} predicts {recording.prediction_type}, expected epsilon as DDIM does"
    if float(getattr(scheduler, "init_noise_sigma", 1.0)) != 1.0:
        return f"{type(scheduler).__name__} scales its noise, which DDIM does not"
    return None


def inverted_noise(pipeline: Any, recording: Recording) -> Tensor:
    """Noise per picture of ``recording``, under its prompts and without guidance.

    Every step uses the output at the timestep that it leads to, for the sample that it comes from, which is what
    makes DDIM run backwards.

    Args:
        pipeline: whose denoiser draws.
        recording: pictures as ``record_images`` makes them, with the timesteps of the pipeline's own schedule.

    Returns:
        float32 [rows, C, H, W], for the pipeline's ``latents``.

    Raises:
        ValueError: ``refusal`` says why, or the recording holds no clean latents.
    """
    reason = refusal(pipeline, recording)
    if reason is not None:
        raise ValueError(reason)
    if recording.latents is None:
        raise ValueError("the recording holds no clean latents to start from")
    denoiser, kept = denoiser_of(pipeline), pipeline.scheduler.alphas_cumprod
    alpha = float(getattr(pipeline.scheduler, "final_alpha_cumprod", kept[0]))
    sample = recording.latents.float()
    with plain_tensors():
        for call in sorted(recording.calls, key=lambda call: float(torch.as_tensor(call.timestep).max())):
            output = call.run(denoiser, **{call.sample_key: sample.to(call.sample.dtype)}).float().cpu()
            clean = (sample - (1 - alpha) ** 0.5 * output) / alpha**0.5
            alpha = float(kept[int(torch.as_tensor(call.timestep).max())])
            sample = alpha**0.5 * clean + (1 - alpha) ** 0.5 * output
    return sample
