"""Families of Cosmos, and videos with guiders."""

from __future__ import annotations

from typing import Any

import diffusers as d
import torch

from . import parts
from .family import family
from .parts import HIDDEN

SMALL = {"height": 32, "width": 32, "max_sequence_length": 16}


class Harmless(torch.nn.Module):
    """Takes the place of Cosmos' guardrail, whose models are large: finds every text and video harmless."""

    def __init__(self) -> None:
        super().__init__()
        self._dtype = torch.float32

    @property
    def device(self) -> torch.device:
        """Of the pipeline."""
        return torch.device("cpu")

    def check_text_safety(self, prompt: str) -> bool:
        """Pass."""
        return True

    def check_video_safety(self, video: Any) -> Any:
        """Pass."""
        return video


def cosmos_transformer(in_channels: int, out_channels: int, text: int = HIDDEN) -> Any:
    """Cosmos' transformer."""
    parts.provide("diffusers.models.transformers.transformer_cosmos", "transforms", parts.Nearest)
    return d.CosmosTransformer3DModel(
        in_channels=in_channels,
        out_channels=out_channels,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        mlp_ratio=2,
        text_embed_dim=text,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        patch_size=(1, 2, 2),
        rope_scale=(2.0, 1.0, 1.0),
        concat_padding_mask=True,
        extra_pos_embed_type="learnable",
    )


@family("cosmos-1", "CosmosTextToWorldPipeline", "video", **SMALL, num_frames=9, negative_prompt="blurry")
def _cosmos() -> Any:
    vae = d.AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
        patch_size=4,
        patch_type="haar",
        scaling_factor=1.0,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )
    scheduler = d.EDMEulerScheduler(
        sigma_min=0.002, sigma_max=80, sigma_data=0.5, sigma_schedule="karras", final_sigmas_type="sigma_min"
    )
    made = {"transformer": cosmos_transformer(4, 4), "vae": vae, "scheduler": scheduler}
    return d.CosmosTextToWorldPipeline(**parts.t5_pair(), **made, safety_checker=Harmless())


@family("cosmos-2", "Cosmos2TextToImagePipeline", **SMALL, negative_prompt="blurry")
def _cosmos2() -> Any:
    made = {
        "transformer": cosmos_transformer(16, 16),
        "vae": parts.wan_vae(),
        "scheduler": parts.flow(use_karras_sigmas=True),
    }
    return d.Cosmos2TextToImagePipeline(**parts.t5_pair(), **made, safety_checker=Harmless())


@family("cosmos-2.5", "Cosmos2_5_PredictBasePipeline", "video", height=32, width=32, num_frames=5,
        max_sequence_length=100, negative_prompt="blurry")  # fmt: skip
def _cosmos25() -> Any:
    made = {"transformer": cosmos_transformer(17, 16, 2 * HIDDEN), "vae": parts.wan_vae()}
    return d.Cosmos2_5_PredictBasePipeline(
        text_encoder=parts.qwen25_vl(),
        tokenizer=parts.words(),
        scheduler=d.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        safety_checker=Harmless(),
        **made,
    )
