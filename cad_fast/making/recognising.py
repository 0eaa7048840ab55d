"""What a model itself sees in the pictures that an edit of it draws.

A diffusion model tells what a picture shows: under the right prompt it denoises it best (arXiv 2303.16203). So the
intact model judges the edited one, by its own knowledge of the concept and of those to keep. What an edit does to
outputs on recorded trajectories says less: with the edit a picture leaves the recorded way.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..diffusion.context import plain_tensors
from ..diffusion.denoisers import denoiser_of
from ..recording.data import Recording
from ..recording.record import with_base
from ..recording.renoise import renoise

# Where a picture's content shows in the noise: shares of the schedule's first timestep. Above, all prompts denoise
# alike; below, none is needed.
SHARES = (0.3, 0.45, 0.6, 0.75)


def recognised(
    pipeline: Any,
    drawn: Recording,
    prompts: Mapping[str, Sequence[str]],
    *,
    seed: int = 0,
    shares: Sequence[float] = SHARES,
) -> list[str]:
    """Say of each picture which of several concepts the model sees in it.

    Each picture is noised at a few timesteps, and denoised under a prompt of each concept; the concept with the least
    squared error over all of them is the one seen.

    Args:
        pipeline: The model that judges.
        drawn: Pictures as the final latents of a recording, by this model under any edit.
        prompts: Per concept its prompts, of which each picture takes one in turn.
        seed: Of the noise.
        shares: The timesteps, as shares of the recording's first one.

    Returns:
        The name of a concept per picture.

    Raises:
        ValueError: There are fewer than two concepts, or the latents cannot be noised, or none were kept.
    """
    if len(prompts) < 2:
        raise ValueError(f"there is one concept, {next(iter(prompts), '')!r}: a model tells concepts from each other")
    if drawn.latents is None:
        raise ValueError("the recording holds no final latents to look at")
    texts = {name: _in_turns(own, drawn.n_rows) for name, own in prompts.items()}
    arguments = {**drawn.generation.to_kwargs(), "num_inference_steps": None}
    first, *others = texts
    timesteps = _timesteps(pipeline, shares)
    noised = renoise(drawn.latents, pipeline, texts[first], timesteps=timesteps, seed=seed, **arguments)
    denoiser = denoiser_of(pipeline)
    with torch.no_grad(), plain_tensors():
        errors = [_error([call.run(denoiser) for call in noised.calls], noised)]
    for name in others:
        under = with_base(noised, pipeline, texts[name], progress=False)
        errors.append(_error([call.base_output for call in under.calls], noised))
    return [list(texts)[each] for each in torch.stack(errors).argmin(0).tolist()]


def _in_turns(texts: Sequence[str], count: int) -> list[str]:
    return list(itertools.islice(itertools.cycle(texts), count))


def _timesteps(pipeline: Any, shares: Sequence[float]) -> list[float]:
    """Training timesteps, whole numbers."""
    total = pipeline.scheduler.config.get("num_train_timesteps", 1000)
    return [float(round(share * total)) for share in shares]


def _error(outputs: Sequence[Tensor | None], noised: Recording) -> Tensor:
    """The squared error of the outputs, summed over elements and timesteps, float32 [rows]."""
    total = torch.zeros(noised.n_rows)
    for output, call in zip(outputs, noised.calls, strict=True):
        assert output is not None and call.target is not None, "calls of renoise have a target, with_base gives outputs"
        difference = call.prediction(output).float().cpu() - call.target.float().cpu()
        total += difference.square().flatten(1).sum(1)
    return total
