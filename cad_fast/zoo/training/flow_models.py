"""The parts of the flow pipeline, as diffusers and transformers models built from configs."""

from __future__ import annotations

from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from .models import HIDDEN, text_config

PROMPT_LENGTH = 10
ENCODERS = 2


def make_projecting_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """Two layers, of which the pipeline reads the first one's output, and the projected end of the text."""
    return CLIPTextModelWithProjection(text_config(tokenizer, PROMPT_LENGTH))


def make_transformer() -> SD3Transformer2DModel:
    """Six blocks of width 128 on 8x8 patches of the 16x16 latents.

    Every block starts as the identity and the output as zero (adaLN-Zero, arXiv 2212.09748).
    """
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=6,
        num_attention_heads=4,
        attention_head_dim=32,
        caption_projection_dim=128,
        joint_attention_dim=ENCODERS * HIDDEN,
        pooled_projection_dim=ENCODERS * HIDDEN,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    for block in transformer.transformer_blocks:
        _zero(block.norm1.linear)
        _zero(block.norm1_context.linear)
    _zero(transformer.norm_out.linear)
    _zero(transformer.proj_out)
    return transformer


def _zero(linear: nn.Linear) -> None:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)


def make_flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Straight paths from noise to data, with evenly spaced steps."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)


def make_flow_pipeline(
    vae: AutoencoderKL,
    text_encoder: CLIPTextModelWithProjection,
    text_encoder_2: CLIPTextModelWithProjection,
    tokenizer: CLIPTokenizer,
    transformer: SD3Transformer2DModel,
) -> StableDiffusion3Pipeline:
    return StableDiffusion3Pipeline(
        vae=vae,
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        text_encoder_3=None,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        tokenizer_3=None,
        transformer=transformer,
        scheduler=make_flow_scheduler(),
    )
