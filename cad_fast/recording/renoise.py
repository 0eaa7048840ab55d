"""The denoiser calls of a denoising loss: clean latents, of images or of a recording, noised again at given timesteps.

These calls have a ``target`` and no ``output``: the loss is taken at ablated denoisers, and the intact one's
output, where it is wanted, is one ``call.run(denoiser)`` away.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..components.fingerprint import Fingerprint
from ..diffusion.arguments import (
    DEFAULT_BATCH,
    output_option,
    prediction_type_of,
    scheduler_config_of,
    split_rows,
)
from ..diffusion.context import generators, plain_tensors
from ..diffusion.denoisers import denoiser_of, timestep_value
from ..diffusion.generation import Generation, not_storable, storable
from ..diffusion.trees import map_arguments
from .call import DenoiserCall
from .data import Recording
from .replayable import require_given
from .watch import DenoiserWatch, first_call

DEFAULT_TIMESTEPS = 10
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def renoise(
    source: Recording | Tensor,
    pipeline: Any,
    prompts: str | Sequence[str] | None = None,
    *,
    timesteps: int | Sequence[float],
    seed: int = 0,
    batch_size: int = DEFAULT_BATCH,
    device: str | torch.device = "cpu",
    **pipeline_kwargs: Any,
) -> Recording:
    """Denoising-loss calls for the final latents of a recording (its generated images), or latents [n, C, H, W].

    ``timesteps``: how many of the pipeline's own schedule, or a list of training timesteps. Row i is noised by a
    generator seeded ``seed`` + i, drawing one noise per timestep. Each call has a ``target``: the noise
    (epsilon), ``alpha * noise - sigma * clean`` (v_prediction), the clean latents (sample), or noise - clean
    (flow_prediction); ``output`` is None. Prompts and ``pipeline_kwargs`` (guidance, size) default to the recording's.
    The scheduler is as before afterwards. Raises ValueError when there are no latents, or they are not what the
    denoiser takes (packed latents).
    """
    generation = Generation.of(**pipeline_kwargs)
    if isinstance(source, Recording):
        if source.latents is None:
            raise ValueError("the recording holds no final latents to noise again")
        source.fingerprint.require_same(Fingerprint.of(denoiser_of(pipeline)), "the recording")
        prompts = source.prompts if prompts is None else prompts
        recorded = replace(source.generation, num_inference_steps=None)
        require_given(source, pipeline_kwargs)
        generation = Generation.of(recorded, **{**source.row_kwargs, **pipeline_kwargs})
        latents = source.latents
    else:
        latents = source
    if prompts is None:
        raise ValueError("prompts are needed: one for all latents, or one each")

    def pick(rows: slice, shape: torch.Size) -> Tensor:
        return latents[rows]

    texts = _one_per_row(prompts, len(latents), "latents")
    return _noised(pick, pipeline, texts, timesteps, seed, batch_size, device, generation)


def record_images(
    pipeline: Any,
    images: Sequence[Image.Image] | str | Path,
    prompts: str | Sequence[str],
    *,
    timesteps: int | Sequence[float] | None = None,
    seed: int = 0,
    batch_size: int = DEFAULT_BATCH,
    device: str | torch.device = "cpu",
    **pipeline_kwargs: Any,
) -> Recording:
    """Denoising-loss calls for real images: PIL images, or those of a folder in the order of their names.

    Images are resized to the pipeline's size and encoded by its VAE (the mean of its distribution). Without
    ``timesteps`` there are ``DEFAULT_TIMESTEPS`` of the pipeline's own schedule. Otherwise as ``renoise``. Raises
    ValueError when a folder holds no image or the encoded latents are not what the denoiser takes.
    """
    pictures = _load_folder(Path(images)) if isinstance(images, (str, Path)) else list(images)
    texts = _one_per_row(prompts, len(pictures), "images")

    generation = Generation.of(**pipeline_kwargs)
    timesteps = DEFAULT_TIMESTEPS if timesteps is None else timesteps

    def encode(rows: slice, shape: torch.Size) -> Tensor:
        return encode_images(pipeline, pictures[rows], shape)

    return _noised(encode, pipeline, texts, timesteps, seed, batch_size, device, generation)


def encode_images(pipeline: Any, images: Sequence[Image.Image], shape: torch.Size) -> Tensor:
    """The latents float32 [n, C, H, W] of images resized to give samples of the denoiser's ``shape`` [B, C, H, W].

    Raises ValueError for packed latents, or when the VAE gives infinities.
    """
    vae = getattr(pipeline, "vae", None)
    if vae is None or len(shape) != 4:
        raise ValueError(
            f"images cannot be encoded for {type(pipeline).__name__}: its denoiser takes samples of shape "
            f"{list(shape)}, expected latents [rows, channels, height, width] of a VAE (not packed)"
        )
    scale = getattr(pipeline, "vae_scale_factor", None) or 2 ** (len(vae.config.block_out_channels) - 1)
    height, width = shape[2] * scale, shape[3] * scale
    processor = getattr(pipeline, "image_processor", None)
    if processor is None:
        from diffusers.image_processor import VaeImageProcessor

        processor = VaeImageProcessor(vae_scale_factor=scale)
    pixels = processor.preprocess([image.convert("RGB") for image in images], height=height, width=width)
    parameter = next(vae.parameters())
    with plain_tensors():
        encoded = vae.encode(pixels.to(parameter.device, parameter.dtype))
    latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
    if not torch.isfinite(latents).all():
        raise ValueError("the VAE gave infinite latents: load it in float32")
    return _normalised(latents.float(), vae.config)


def _normalised(latents: Tensor, config: Any) -> Tensor:
    """As pipelines do it: (latents - shift) * scale, or by the mean and deviation per channel where a VAE has them."""
    scale = getattr(config, "scaling_factor", None)
    scale = 1.0 if scale is None else scale
    mean, deviation = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and deviation is not None:
        column = [torch.tensor(values, device=latents.device).view(1, -1, 1, 1) for values in (mean, deviation)]
        return (latents - column[0]) * scale / column[1]
    return (latents - (getattr(config, "shift_factor", None) or 0.0)) * scale


def _load_folder(folder: Path) -> list[Image.Image]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of images")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise ValueError(f"{folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return [open_image(path) for path in paths]


def open_image(path: Path) -> Image.Image:
    """Read a picture as RGB. Raises ValueError when there is none, or it is too large to be opened safely."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a readable image: {error}") from error


def _one_per_row(prompts: str | Sequence[str], n_rows: int, things: str) -> list[str]:
    texts = [prompts] * n_rows if isinstance(prompts, str) else list(prompts)
    if not n_rows or len(texts) != n_rows:
        raise ValueError(
            f"there are {len(texts)} prompts for {n_rows} {things}; expected one each, or one text for all"
        )
    return texts


def _noised(
    clean_of: Callable[[slice, torch.Size], Tensor],
    pipeline: Any,
    texts: list[str],
    timesteps: int | Sequence[float],
    seed: int,
    batch_size: int,
    device: str | torch.device,
    generation: Generation,
) -> Recording:
    n_steps = timesteps if isinstance(timesteps, int) else None
    if batch_size < 1 or (n_steps is not None and n_steps < 1):
        raise ValueError(f"batch_size ({batch_size}) and the number of timesteps ({timesteps}) must be at least 1")
    if generation.num_inference_steps is not None:
        raise ValueError(
            f"num_inference_steps is {generation.num_inference_steps}: pass timesteps={generation.num_inference_steps}"
        )
    generation, per_row = split_rows(replace(generation, num_inference_steps=n_steps).resolved(pipeline), len(texts))
    latent = output_option(pipeline, "latent")
    fingerprint = Fingerprint.of(denoiser_of(pipeline))
    parts = []
    for start in range(0, len(texts), batch_size):
        rows = slice(start, start + batch_size)
        seeds = [seed + row for row in range(len(texts))[rows]]
        of_rows = {name: values[rows] for name, values in per_row.items()}
        first, watch, scheduler = first_call(
            pipeline, texts[rows], seeds, {**generation.to_kwargs(), **of_rows, **latent}
        )
        clean = clean_of(rows, first.sample.shape).detach().float().cpu()
        if clean.shape != first.sample.shape:
            raise ValueError(
                f"the latents have shape {list(clean.shape)}, but {type(watch.denoiser).__name__} takes "
                f"{list(first.sample.shape)}: packed latents and extra channels are not supported"
            )
        noising = _Noising(scheduler, timesteps, first, watch)
        calls = noising.calls(clean, seeds, torch.device(device))
        parts.append(
            Recording(
                calls=calls,
                prompts=texts[rows],
                seeds=seeds,
                generation=replace(generation, num_inference_steps=len(calls)).storable(),
                scheduler_config=scheduler_config_of(pipeline),
                prediction_type=noising.prediction_type,
                fingerprint=fingerprint,
                latents=clean.to(device),
                denoiser_calls=1,
                row_kwargs=storable(of_rows),
                not_kept=not_storable({**generation.to_kwargs(), **of_rows}),
            )
        )
    return parts[0] if len(parts) == 1 else Recording.concat(parts)


class _Noising:
    """Adds noise as the pipeline's scheduler does, on a scheduler of its own."""

    def __init__(
        self, scheduler: Any, timesteps: int | Sequence[float], first: DenoiserCall, watch: DenoiserWatch
    ) -> None:
        self.prediction_type = prediction_type_of(scheduler)
        if self.prediction_type is None:
            raise ValueError(f"{type(scheduler).__name__} does not tell what its denoiser predicts")
        if watch.negated:
            raise ValueError("the pipeline negates its denoiser's output, so there is no known target for it")
        self.first = first
        self.ratio = self._timestep_ratio(scheduler, watch)
        if isinstance(timesteps, int):
            schedule = scheduler.timesteps
            self.timesteps = torch.tensor(list(dict.fromkeys(schedule.tolist())), dtype=schedule.dtype)
        else:
            scheduler = type(scheduler).from_config(scheduler.config)
            self.timesteps = self._explicit(scheduler, sorted({float(t) for t in timesteps}, reverse=True))
        for name in ("_step_index", "_begin_index"):  # the stopped run has begun; this one has not
            if hasattr(scheduler, name):
                setattr(scheduler, name, None)
        self.scheduler = scheduler

    def _timestep_ratio(self, scheduler: Any, watch: DenoiserWatch) -> float:
        """What the scheduler's timestep is multiplied by before the denoiser gets it: 1, or 1/1000."""
        scheduled = watch.first_scheduler_timestep
        given = self.first.timestep
        total = scheduler.config.get("num_train_timesteps", 1000)
        if scheduled is not None and not isinstance(given, Tensor):
            for ratio in (1.0, 1.0 / total):
                if abs(given - scheduled * ratio) <= 1e-2 * abs(scheduled * ratio) + 1e-6:
                    return ratio
        raise ValueError(
            f"the pipeline gives its denoiser the timestep {given} where its scheduler has {scheduled}: "
            "noising for such a pipeline is not supported"
        )

    def _explicit(self, scheduler: Any, timesteps: list[float]) -> Tensor:
        """Set the scheduler to the given training timesteps, with the noise levels they had in training."""
        total = scheduler.config.get("num_train_timesteps", 1000)
        outside = [t for t in timesteps if not 0 <= t <= total]
        if not timesteps or outside:
            raise ValueError(f"timesteps {outside or 'are empty'}: expected numbers from 0 to {total}")
        if self.prediction_type == "flow_prediction":
            chosen = torch.tensor(timesteps)
            sigmas = chosen / total
        else:
            fractional = [t for t in timesteps if t != int(t) or t == total]
            if fractional:
                raise ValueError(f"timesteps {fractional}: expected whole numbers below {total}")
            chosen = torch.tensor([int(t) for t in timesteps])
            if not hasattr(scheduler, "alphas_cumprod"):
                raise ValueError(f"{type(scheduler).__name__} takes no list of timesteps: give their number instead")
            kept = scheduler.alphas_cumprod[chosen]
            sigmas = ((1 - kept) / kept).sqrt()
        scheduler.timesteps = chosen
        if hasattr(scheduler, "sigmas"):
            scheduler.sigmas = torch.cat([sigmas, sigmas.new_zeros(1)])
        return chosen

    def noised(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """The denoiser's sample for clean latents at a 0-dim timestep."""
        scheduler = copy.deepcopy(self.scheduler)  # scaling moves a scheduler to its timestep, and not back
        each = timestep.expand(len(clean))
        if hasattr(scheduler, "scale_noise"):
            sample = scheduler.scale_noise(clean, each, noise)
        else:
            sample = scheduler.add_noise(clean, noise, each)
        return scheduler.scale_model_input(sample, timestep) if hasattr(scheduler, "scale_model_input") else sample

    def target(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return clean
        if self.prediction_type == "flow_prediction":
            return noise - clean
        if self.prediction_type != "v_prediction":
            raise ValueError(f"no target is known for the prediction type {self.prediction_type!r}")
        # Noising is linear, so the scheduler itself tells its factors. Its get_velocity is not used: the one of
        # EulerDiscreteScheduler reads the noise level at the index in the schedule instead of the timestep.
        one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
        alpha = self.noised(one, zero, timestep).item()
        sigma = self.noised(zero, one, timestep).item()
        if abs(alpha**2 + sigma**2 - 1) > 1e-2:
            raise ValueError("v_prediction is only defined where the noised sample keeps its variance")
        return alpha * noise - sigma * clean

    def _timestep_argument(self, timestep: Tensor) -> Any:
        like = self.first.inputs[self.first.timestep_key]
        value = timestep.item() * self.ratio
        if not isinstance(like, Tensor):
            return value
        dtype = like.dtype if like.is_floating_point() or value == int(value) else torch.float32
        return torch.full(like.shape, value, dtype=dtype)

    def calls(self, clean: Tensor, seeds: list[int], device: torch.device) -> list[DenoiserCall]:
        """One call per timestep for clean latents float32 [B, C, H, W]."""
        row_generators = generators(seeds)
        first = replace(self.first, output=None, unconditional_inputs=None, unconditional_output=None)
        first.inputs = map_arguments(first.inputs, lambda _, leaf: leaf.to(device) if _is_tensor(leaf) else leaf)
        calls = []
        for step, timestep in enumerate(self.timesteps):
            noise = torch.stack([torch.randn(clean.shape[1:], generator=generator) for generator in row_generators])
            changing = {
                first.sample_key: self.noised(clean, noise, timestep).to(device, first.sample.dtype),
                first.timestep_key: self._timestep_argument(timestep),
            }
            calls.append(
                replace(
                    first,
                    step=step,
                    timestep=timestep_value(changing[first.timestep_key]),
                    inputs={**first.inputs, **changing},
                    target=self.target(clean, noise, timestep).to(device, first.sample.dtype),
                )
            )
        return calls


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)
