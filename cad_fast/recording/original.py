"""The denoiser calls of a loss towards another model: what the original gave, for the model that was made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..components.fingerprint import Fingerprint
from ..diffusion.arguments import DEFAULT_BATCH, prediction_type_of
from ..diffusion.denoisers import denoiser_of
from .call import DenoiserCall
from .data import REPLAY_TOLERANCE, Recording
from .record import record, run_settings, with_text_of
from .watch import first_call


def record_original(
    pipeline: Any,
    original: Any,
    prompts: str | Sequence[str],
    *,
    seeds: int | Sequence[int] | None = None,
    batch_size: int = DEFAULT_BATCH,
    progress: bool = True,
    device: str | torch.device = "cpu",
    **pipeline_kwargs: Any,
) -> Recording:
    """Denoising-loss calls for ``pipeline`` whose targets are what ``original`` gave as it generated.

    ``original`` generates as in ``record``. Its conditional outputs become each call's ``target``; ``output`` is None.
    The texts are encoded by ``pipeline``, so that a changed text encoder counts as part of what it does.
    ``DenoisingLoss`` is then minus the mean squared distance between the two models' outputs.

    Args:
        pipeline: the model that scores or edits are to be made for.
        original: the model before it was changed. Its denoiser has the same architecture.
        prompts: that express the concept, one row each.
        seeds: as for ``record``.
        batch_size: at most so many rows are generated at once.
        progress: whether to show a progress bar.
        device: where the recording's tensors are kept.
        **pipeline_kwargs: go to both pipelines, such as ``num_inference_steps`` and ``guidance_scale``.

    Returns:
        A recording of ``pipeline``'s denoiser, with as many calls as the original made.

    Raises:
        ValueError: the two are one model or give the same outputs, their denoisers differ in architecture, or they
            predict different things.
        TypeError: one of them has no denoiser.
    """
    denoiser = denoiser_of(pipeline)
    if denoiser is denoiser_of(original):
        raise ValueError("the original is the pipeline itself: load the model as it was into another pipeline")
    settings: dict[str, Any] = {"batch_size": batch_size, "progress": progress, "device": device}
    taught = record(original, prompts, seeds=seeds, **settings, **pipeline_kwargs)
    fingerprint = Fingerprint.of(denoiser)
    if fingerprint.architecture != taught.fingerprint.architecture:
        raise ValueError("the original is another model: " + str(fingerprint.difference(taught.fingerprint)))
    parts = []
    for start in range(0, taught.n_rows, batch_size):
        part = taught.select(rows=range(start, min(start + batch_size, taught.n_rows)))
        arguments = run_settings(part, pipeline, pipeline_kwargs)
        own, watch, _ = first_call(pipeline, part.prompts, part.seeds, arguments)
        if prediction_type_of(watch.scheduler) != taught.prediction_type:
            raise ValueError(
                f"the original predicts {taught.prediction_type}, the pipeline {prediction_type_of(watch.scheduler)}"
            )
        calls = [_towards(call, part.calls[0], own) for call in part.calls]
        parts.append(replace(part, calls=calls, fingerprint=fingerprint))
    towards = parts[0] if len(parts) == 1 else Recording.concat(parts)
    _require_different(towards, denoiser)
    return towards


@torch.no_grad()
def _require_different(towards: Recording, denoiser: nn.Module) -> None:
    """Raise ValueError where every output is the original's, up to rounding: scores would be of the rounding alone."""
    for call in towards.calls:
        row = call.select_rows([0])
        assert row.target is not None, "its calls are made with targets"
        apart = (row.run(denoiser).cpu().float() - row.target.cpu().float()).norm()
        if apart > REPLAY_TOLERANCE[row.target.dtype] * row.target.float().norm().cpu():
            return
    raise ValueError("the original gives the same outputs as the pipeline: there is nothing to bring back")


def _towards(call: DenoiserCall, first: DenoiserCall, own: DenoiserCall) -> DenoiserCall:
    """``call`` of the original with the texts of the first call ``own`` of the other, and its output as the target."""
    moved = with_text_of(call, first, own)
    return replace(moved, target=call.output, output=None, unconditional_inputs=None, unconditional_output=None)
