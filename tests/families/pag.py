"""Families under perturbed-attention guidance, which evaluates the denoiser three times in a step."""

from __future__ import annotations

from typing import Any

import diffusers as d

from tests.pipelines import pixart, stable_diffusion_3

from .dits import pixart_transformer, sana_parts
from .family import family
from .hunyuan import hunyuan_dit_parts
from .parts import HIDDEN
from .unets import CONTROL, control_net, sd_parts, sdxl_parts, without_checker
from .video import animate_parts

MID = {"pag_applied_layers": "mid"}
FIRST = {"pag_applied_layers": ["blocks.0"]}


@family("pag-sd", "StableDiffusionPAGPipeline", pag_scale=2.0)
def _sd() -> Any:
    return d.StableDiffusionPAGPipeline(**sd_parts(), **without_checker(), **MID)


@family("pag-sd-alone", "StableDiffusionPAGPipeline", pag_scale=2.0, guidance_scale=0.0)
def _sd_alone() -> Any:
    """Without classifier-free guidance: half of each call is the perturbed model, with the same inputs."""
    return d.StableDiffusionPAGPipeline(**sd_parts(), **without_checker(), **MID)


@family("pag-sdxl", "StableDiffusionXLPAGPipeline", pag_scale=2.0)
def _sdxl() -> Any:
    return d.StableDiffusionXLPAGPipeline(**sdxl_parts(), **MID)


@family("pag-controlnet-sd", "StableDiffusionControlNetPAGPipeline", pag_scale=2.0, image=CONTROL)
def _controlnet() -> Any:
    made = {**sd_parts(), "controlnet": control_net(cross_attention_dim=HIDDEN)}
    return d.StableDiffusionControlNetPAGPipeline(**made, **without_checker(), **MID)


@family("pag-sd3", "StableDiffusion3PAGPipeline", pag_scale=2.0)
def _sd3() -> Any:
    made = stable_diffusion_3.__wrapped__().components
    made = {name: part for name, part in made.items() if name not in ("image_encoder", "feature_extractor")}
    return d.StableDiffusion3PAGPipeline(**made, **FIRST)


@family("pag-pixart-sigma", "PixArtSigmaPAGPipeline", pag_scale=2.0, use_resolution_binning=False, clean_caption=False,
        height=16, width=16, max_sequence_length=16)  # fmt: skip
def _pixart() -> Any:
    made = {**pixart.__wrapped__().components, "transformer": pixart_transformer()}
    return d.PixArtSigmaPAGPipeline(**made, **FIRST)


@family("pag-sana", "SanaPAGPipeline", pag_scale=2.0, height=32, width=32, use_resolution_binning=False,
        complex_human_instruction=None, clean_caption=False, max_sequence_length=16)  # fmt: skip
def _sana() -> Any:
    return d.SanaPAGPipeline(**sana_parts(), pag_applied_layers=["transformer_blocks.0"])


@family("pag-hunyuan-dit", "HunyuanDiTPAGPipeline", pag_scale=2.0, height=16, width=16, use_resolution_binning=False)
def _hunyuan() -> Any:
    return d.HunyuanDiTPAGPipeline(**hunyuan_dit_parts(), **FIRST)


@family("pag-animatediff", "AnimateDiffPAGPipeline", "video", pag_scale=2.0, num_frames=2, height=16, width=16)
def _animate() -> Any:
    return d.AnimateDiffPAGPipeline(**animate_parts(), **MID)
