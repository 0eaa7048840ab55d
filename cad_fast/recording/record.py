"""Record the denoiser calls of any diffusers pipeline while it generates.

Nothing here is specific to a pipeline: a hook watches the denoiser, its arguments are bound by name, and the data tell
classifier-free guidance (see ``DenoiserWatch``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ..components.fingerprint import Fingerprint
from ..diffusion.arguments import (
    DEFAULT_BATCH,
    output_option,
    prediction_type_of,
    prompt_arguments,
    scheduler_config_of,
    split_rows,
    spread_prompts,
)
from ..diffusion.context import generators, plain_tensors, silent
from ..diffusion.denoisers import denoiser_of
from ..diffusion.dtypes import one_dtype
from ..diffusion.generation import Generation, not_storable, storable
from ..diffusion.trees import same_leaf
from .call import DenoiserCall
from .data import Recording
from .replayable import require_given, require_no_cache, require_prompts, require_replayable
from .watch import DenoiserWatch, first_call


def _final_latents(result: Any, watch: DenoiserWatch, n_rows: int, keep_images: bool) -> Tensor | None:
    """What the pipeline returned as latents; with images instead, what its scheduler gave last."""
    latents = watch.last_sample if keep_images else result
    if isinstance(latents, Tensor) and latents.ndim > 0 and len(latents) == n_rows:
        return latents.detach().to(watch.calls[0].sample.device, copy=True)
    return None


def _record_batch(
    pipeline: Any,
    prompts: list[str],
    seeds: list[int],
    arguments: dict[str, Any],
    keep_images: bool,
    device: str | torch.device,
    bar: tqdm,
) -> tuple[DenoiserWatch, Tensor | None, list[Image.Image] | None]:
    watch = DenoiserWatch(pipeline, len(prompts), device=device, on_step=bar.update)
    with watch, one_dtype(pipeline):
        result = pipeline(**prompt_arguments(prompts, arguments), generator=generators(seeds))
    if not watch.calls:
        raise ValueError("the pipeline finished without calling its denoiser")
    first = result if isinstance(result, Tensor) else result[0]
    images = None
    if keep_images:
        images = list(first)
        if len(images) != len(prompts) or not all(isinstance(image, Image.Image) for image in images):
            raise ValueError(f"{type(pipeline).__name__} did not return one PIL image per prompt")
    return watch, _final_latents(first, watch, len(prompts), keep_images), images


def record(
    pipeline: Any,
    prompts: str | Sequence[str] | None,
    *,
    seeds: int | Sequence[int] | None = None,
    batch_size: int = DEFAULT_BATCH,
    keep_images: bool = False,
    progress: bool = True,
    device: str | torch.device = "cpu",
    **pipeline_kwargs: Any,
) -> Recording:
    """Generate with ``pipeline`` and record its denoiser calls, one row per prompt.

    Row i has its own CPU generator, seeded ``seeds[i]`` (an int s stands for s, s+1, ...; None for 0). Tensors keep
    their dtype and are stored on ``device``. Images are only decoded with ``keep_images``. ``pipeline_kwargs`` go to
    the pipeline, such as ``num_inference_steps`` and ``guidance_scale`` (see ``Generation.to_kwargs``). Lists with one
    entry per prompt are split with the batches. Hooks and progress bars are as before afterwards, also after an error.
    With ``prompt_embeds`` among them the prompts are labels, or None. The first call is replayed, so that a recording
    that is handed out can be run again.

    Raises:
        TypeError: there is no denoiser, or several and none is meant.
        ValueError: guidance is of another kind than classifier-free, arguments do not fit, or a recorded call cannot be
            replayed; the message names the inputs that are in the way.
    """
    if prompts is None:
        embeds = pipeline_kwargs.get("prompt_embeds")
        if not isinstance(embeds, Tensor):
            raise ValueError("there is nothing to record: pass prompts, or prompt_embeds")
        prompts = [""] * len(embeds)
    texts, numbers = spread_prompts(prompts, seeds)
    require_prompts(pipeline)
    require_no_cache(denoiser_of(pipeline))
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
    generation, per_row = split_rows(Generation.of(**pipeline_kwargs).resolved(pipeline), len(texts))
    arguments = {**generation.to_kwargs(), **output_option(pipeline, "pil" if keep_images else "latent")}
    fingerprint = Fingerprint.of(denoiser_of(pipeline))
    starts = range(0, len(texts), batch_size)
    n_steps = generation.num_inference_steps
    parts: list[Recording] = []
    with (
        plain_tensors(),
        silent(pipeline),
        tqdm(total=n_steps and n_steps * len(starts), desc="recording", disable=not progress) as bar,
    ):
        for start in starts:
            rows = slice(start, start + batch_size)
            of_rows = {name: values[rows] for name, values in per_row.items()}
            watch, latents, images = _record_batch(
                pipeline, texts[rows], numbers[rows], {**arguments, **of_rows}, keep_images, device, bar
            )
            if not parts:
                require_replayable(watch.calls[0], watch.denoiser)
            parts.append(
                Recording(
                    calls=watch.calls,
                    prompts=texts[rows],
                    seeds=numbers[rows],
                    generation=replace(generation, num_inference_steps=n_steps or len(watch.calls)).storable(),
                    scheduler_config=scheduler_config_of(watch),
                    prediction_type=prediction_type_of(watch.scheduler),
                    fingerprint=fingerprint,
                    images=images,
                    latents=latents,
                    denoiser_calls=len(watch.calls) + (not parts),
                    row_kwargs=storable(of_rows),
                    not_kept=not_storable({**arguments, **of_rows}),
                )
            )
    return parts[0] if len(parts) == 1 else Recording.concat(parts)


def with_text_of(call: DenoiserCall, first: DenoiserCall, base: DenoiserCall) -> DenoiserCall:
    """``call`` under the base prompt: the inputs that do not change from step to step are those of ``base``.

    What changes (the sample, the timestep, residuals of a ControlNet) stays as recorded.
    """
    changing = {call.sample_key, call.timestep_key}
    constant = {
        name for name, value in call.inputs.items() if name not in changing and same_leaf(value, first.inputs.get(name))
    }
    kept = {name: value for name, value in call.inputs.items() if name not in constant}
    text = {name: value for name, value in base.inputs.items() if name not in kept}
    kept_paths = {path for path in call.row_paths or () if path.split(".")[0] in kept}
    text_paths = {path for path in base.row_paths or () if path.split(".")[0] in text}
    return replace(call, inputs={**kept, **text}, row_paths=frozenset(kept_paths | text_paths))


def with_base(
    recording: Recording,
    pipeline: Any,
    base_prompts: str | Sequence[str],
    *,
    batch_size: int = DEFAULT_BATCH,
    progress: bool = True,
    **pipeline_kwargs: Any,
) -> Recording:
    """``recording`` with ``base_output`` [B, ...] per call: the output for the same sample under the base prompt.

    One base prompt for all rows, or one per row. ``pipeline_kwargs`` adds what the recording could not keep, such as
    images. ``denoiser_calls`` grows by the evaluations made. Raises ValueError when the pipeline's denoiser is not the
    recorded one, or the number of base prompts is not that of the rows.
    """
    texts = [base_prompts] * recording.n_rows if isinstance(base_prompts, str) else list(base_prompts)
    if len(texts) != recording.n_rows:
        raise ValueError(f"there are {len(texts)} base prompts for {recording.n_rows} rows; expected one per row")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
    denoiser = denoiser_of(pipeline)
    recording.fingerprint.require_same(Fingerprint.of(denoiser), "the recording")
    added, per_row = split_rows(Generation.of(**pipeline_kwargs), recording.n_rows)
    starts = range(0, recording.n_rows, batch_size)
    outputs: list[list[Tensor]] = [[] for _ in recording.calls]
    with (
        plain_tensors(),
        tqdm(total=len(starts) * recording.n_steps, desc="base prompt", disable=not progress) as bar,
    ):
        for start in starts:
            rows = list(range(start, min(start + batch_size, recording.n_rows)))
            part = recording.select(rows=rows)
            of_rows = {name: values[start : start + batch_size] for name, values in per_row.items()}
            arguments = run_settings(part, pipeline, {**added.to_kwargs(), **of_rows}, instead=("prompt",))
            base, _, _ = first_call(pipeline, [texts[row] for row in rows], part.seeds, arguments)
            for call, collected in zip(part.calls, outputs, strict=True):
                output = with_text_of(call, part.calls[0], base).run(denoiser)
                collected.append(output.detach().to(call.sample.device))
                bar.update()
    calls = [replace(call, base_output=torch.cat(parts)) for call, parts in zip(recording.calls, outputs, strict=True)]
    evaluations = len(starts) * (recording.n_steps + 1)
    return replace(recording, calls=calls, base_prompts=texts, denoiser_calls=recording.denoiser_calls + evaluations)


def run_settings(
    recording: Recording, pipeline: Any, overrides: dict[str, Any], instead: Sequence[str] = ()
) -> dict[str, Any]:
    """The pipeline arguments that a recording was made with, some replaced.

    Raises ValueError naming an argument that the recording could not keep and that is not among ``overrides``, unless
    its name holds one of ``instead``, which are given in other ways.
    """
    require_given(recording, overrides, instead)
    generation = Generation.of(recording.generation, **recording.row_kwargs).resolved(pipeline)
    return {**generation.to_kwargs(), **overrides, **output_option(pipeline, "latent")}
