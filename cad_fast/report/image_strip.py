"""A real picture under strengths of edits: it is turned into noise, and drawn again with a concept less or more."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from ..diffusion.context import generators, plain_tensors, silent
from ..diffusion.denoisers import denoiser_of
from ..diffusion.generation import Generation
from ..edits.edit import Edit
from ..edits.rows.spread import Branches, Windows
from ..recording.inversion import backwards, refusal
from ..recording.renoise import record_images
from .sheets import contact_sheet
from .strip import STRENGTHS, loaded

FIXED_POINTS = 3
"""Corrections of each step backwards: with them the embedded models draw their pictures again (docs/edits.md)."""
EXTREME, THRESHOLD = 2.0, 0.5
"""What the prompt does at each place is cut at so many times its mean; places with more than this share of it are the
object's (as DiffEdit does, arXiv 2210.11427, with 3; here over the neighbours too)."""


@dataclass
class ImageStrip:
    """A picture drawn again at every strength.

    Attributes:
        sheet: the picture and all strengths, with labels; ``mask`` in the second row.
        images: one per strength.
        strengths: 0 is the model without edits.
        mask: bool [H, W], where the prompt has most to say: about the object.
        redrawn: the mean absolute difference of the drawing at strength 0 and the picture, of 0 to 1.
        changed: per strength the mean absolute difference to that at strength 0, "inside" the mask and "outside" of it.
    """

    sheet: Image.Image
    images: list[Image.Image]
    strengths: list[float]
    mask: Tensor
    redrawn: float
    changed: list[dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON."""
        return {
            "strengths": self.strengths,
            "redrawn": self.redrawn,
            "object_share": float(self.mask.float().mean()),
            "changed": self.changed,
        }


def image_strip(
    pipeline: Any,
    edits: Edit | str | Path | Sequence[Edit | str | Path],
    image: Image.Image,
    prompt: str,
    strengths: Sequence[float] = STRENGTHS,
    *,
    seed: int = 0,
    windows: Windows = None,
    branch: Branches = "both",
    scale: float | None = None,
    progress: bool = False,
    **pipeline_kwargs: Any,
) -> ImageStrip:
    """Draw a picture again at every strength of the edits, in one call of the pipeline and from the picture's noise.

    The picture is encoded and inverted under ``prompt`` without guidance, by DDIM (arXiv 2010.02502) or Euler steps of
    a flow. It is drawn again without guidance too, unless ``guidance_scale`` says otherwise: guidance draws another
    picture even at strength 0.

    Args:
        pipeline: a pipeline or an ``EditManager``, as for ``strip``.
        edits: as for ``strip``.
        image: the picture, resized to the pipeline's size.
        prompt: what it shows.
        strengths: 0 off, 1 the edit, below 0 the reverse. 0 is drawn in any case.
        seed: of what else the pipeline draws.
        windows: as for ``EditManager``.
        branch: as for ``EditManager``.
        scale: as for ``contact_sheet``.
        progress: whether to show the pipeline's progress bar.
        **pipeline_kwargs: go to the pipeline, such as ``num_inference_steps``.

    Returns:
        The pictures, and how far they are from the picture at strength 0 on the object and beside it.

    Raises:
        ValueError: there are no strengths, the way back to noise is not known for the pipeline, and as ``EditManager``.
    """
    if not len(strengths):
        raise ValueError("no strengths were given for the strip")
    listed = [edits] if isinstance(edits, (Edit, str, Path)) else list(edits)
    if not listed:
        raise ValueError("no edits were given for the strip")
    generation = Generation.of(**{"guidance_scale": 1.0, **pipeline_kwargs})
    drawn = [0.0, *(float(strength) for strength in strengths if strength != 0)]
    with loaded(pipeline, listed) as (manager, names), plain_tensors():
        quiet = contextlib.nullcontext() if progress else silent(manager.pipeline)
        with quiet:
            noise, mask = _noise_and_mask(manager.pipeline, image, prompt, generation)
            flat = manager(
                [prompt] * len(drawn),
                edit_names=[names] * len(drawn),
                edit_weights=drawn,
                windows=windows,
                branch=branch,
                generator=generators([seed] * len(drawn)),
                latents=noise.expand(len(drawn), *noise.shape[1:]).clone(),
                **generation.to_kwargs(len(drawn)),
            ).images
    by_strength = dict(zip(drawn, flat, strict=True))
    images = [by_strength[float(strength)] for strength in strengths]
    given = image.convert("RGB").resize(flat[0].size)
    area = interpolate(mask[None, None].float(), size=(given.height, given.width), mode="nearest")[0, 0] > 0
    changed = [_changed(by_strength[0.0], each, area) for each in images]
    shown = Image.fromarray((255 * area.numpy()).astype(np.uint8)).convert("RGB")
    sheet = contact_sheet(
        [[given, *images], [shown]],
        [prompt, "where the prompt speaks"],
        ["the picture", *(f"strength {strength:g}" for strength in strengths)],
        scale=scale,
    )
    redrawn = float((_pixels(by_strength[0.0]) - _pixels(given)).abs().mean())
    return ImageStrip(sheet, images, [float(strength) for strength in strengths], area, redrawn, changed)


def _noise_and_mask(pipeline: Any, image: Image.Image, prompt: str, generation: Generation) -> tuple[Tensor, Tensor]:
    """The picture's noise [1, C, H, W], and where in it the output under the prompt differs from that under none."""
    own = {name: value for name, value in generation.arguments.items() if name != "guidance_scale"}
    steps = generation.resolved(pipeline).num_inference_steps
    settings = {**own, "timesteps": steps, "guidance_scale": 1.0}
    settings.pop("num_inference_steps", None)
    recording, without = (record_images(pipeline, [image], text, **settings) for text in (prompt, ""))
    reason = refusal(pipeline, recording)
    if reason is not None:
        raise ValueError(f"the picture cannot be turned into noise: {reason}")
    others = {call.step: call for call in without.calls}
    denoiser, sample = denoiser_of(pipeline), None
    differences = []
    for call, sample in backwards(pipeline, recording, fixed_points=FIXED_POINTS):
        given = {call.sample_key: sample.to(call.sample.dtype)}
        pair = [each.run(denoiser, **given).float().cpu() for each in (call, others[call.step])]
        differences.append((pair[0] - pair[1]).abs().mean(1)[0])
    assert sample is not None, "a recording has calls"
    spread = avg_pool2d(torch.stack(differences).sum(0)[None], 3, 1, 1, count_include_pad=False)[0]
    return sample, spread.clamp(max=EXTREME * spread.mean()) / (EXTREME * spread.mean()) > THRESHOLD


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).float() / 255


def _changed(before: Image.Image, after: Image.Image, area: Tensor) -> dict[str, float]:
    moved = (_pixels(after) - _pixels(before)).abs().mean(-1)
    return {
        name: float(moved[part].mean()) if part.any() else 0.0 for name, part in (("inside", area), ("outside", ~area))
    }
