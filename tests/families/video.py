"""Families of videos."""

from __future__ import annotations

from typing import Any

import diffusers as d

from cad_fast import PipelinePart

from . import parts
from .family import family
from .parts import HIDDEN
from .unets import ddim, sd_parts

SMALL = {"height": 16, "width": 16, "max_sequence_length": 16}


def animate_parts() -> dict[str, Any]:
    """What AnimateDiff takes: Stable Diffusion's parts, and motion modules put between the UNet's layers."""
    motion = d.MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=4,
        motion_num_attention_heads=2,
        use_motion_mid_block=False,
    )
    return {**sd_parts(), "motion_adapter": motion, "feature_extractor": None, "image_encoder": None}


@family("animatediff", "AnimateDiffPipeline", "video", num_frames=2, height=16, width=16)
def _animatediff() -> Any:
    return d.AnimateDiffPipeline(**animate_parts())


@family("text-to-video-sd", "TextToVideoSDPipeline", "video", num_frames=2, height=16, width=16)
def _text_to_video() -> Any:
    made = sd_parts()
    made["unet"] = d.UNet3DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=HIDDEN,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    return d.TextToVideoSDPipeline(**made)


def wan_transformer(channels: int = 16, kind: Any = None, **more: Any) -> Any:
    """Wan's transformer, or that of a model made after it."""
    return (kind or d.WanTransformer3DModel)(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=channels,
        out_channels=channels,
        text_dim=HIDDEN,
        freq_dim=16,
        ffn_dim=16,
        num_layers=2,
        cross_attn_norm=True,
        rope_max_seq_len=32,
        **more,
    )


def wan_parts(scheduler: Any = None, **more: Any) -> dict[str, Any]:
    """What Wan takes; ``more`` replaces some of it."""
    return {
        "tokenizer": parts.t5_tokenizer(),
        "text_encoder": parts.umt5(),
        "transformer": wan_transformer(),
        "vae": parts.wan_vae(),
        "scheduler": scheduler or parts.flow(shift=3.0),
        **more,
    }


def unipc() -> Any:
    """The scheduler that Wan comes with."""
    return d.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


WAN = {**SMALL, "num_frames": 5, "negative_prompt": "blurry"}


@family("wan-2.1", "WanPipeline", "video", **WAN, fast=True)
def _wan() -> Any:
    return d.WanPipeline(**wan_parts())


@family("wan-2.2", "WanPipeline", "video", **WAN, fast=True)
def _wan22() -> Any:
    """Two transformers: one for the noisy steps, one for the rest."""
    return d.WanPipeline(**wan_parts(unipc(), transformer_2=wan_transformer()), boundary_ratio=0.9)


@family("wan-2.2-high-noise", "WanPipeline", "video", **WAN, calls=1)
def _wan22_first() -> Any:
    return PipelinePart(_wan22(), "transformer")


@family("wan-2.2-low-noise", "WanPipeline", "video", **WAN, calls=1)
def _wan22_second() -> Any:
    return PipelinePart(_wan22(), "transformer_2")


@family("wan-2.2-5b", "WanPipeline", "video", **{**WAN, "height": 32, "width": 32})
def _wan22_5b() -> Any:
    """A timestep for every token."""
    vae = parts.wan_vae(
        48,
        in_channels=12,
        out_channels=12,
        is_residual=True,
        patch_size=2,
        latents_mean=[0.0] * 48,
        latents_std=[1.0] * 48,
        scale_factor_spatial=16,
        scale_factor_temporal=4,
    )
    made = wan_parts(unipc(), transformer=wan_transformer(48), vae=vae)
    return d.WanPipeline(**made, expand_timesteps=True)


@family("skyreels-v2", "SkyReelsV2Pipeline", "video", **WAN)
def _skyreels() -> Any:
    parts.provide("diffusers.pipelines.skyreels_v2.pipeline_skyreels_v2", "ftfy", parts.PlainText)
    made = wan_parts(unipc(), transformer=wan_transformer(kind=d.SkyReelsV2Transformer3DModel))
    return d.SkyReelsV2Pipeline(**made)


@family("skyreels-v2-df", "SkyReelsV2DiffusionForcingPipeline", "video", **WAN)
def _skyreels_forcing() -> Any:
    module = "diffusers.pipelines.skyreels_v2.pipeline_skyreels_v2_diffusion_forcing"
    parts.provide(module, "ftfy", parts.PlainText)
    made = wan_parts(unipc(), transformer=wan_transformer(kind=d.SkyReelsV2Transformer3DModel))
    return d.SkyReelsV2DiffusionForcingPipeline(**made)


@family("sana-video", "SanaVideoPipeline", "video", height=32, width=32, frames=5, use_resolution_binning=False,
        clean_caption=False, max_sequence_length=16, complex_human_instruction=None)  # fmt: skip
def _sana_video() -> Any:
    transformer = d.SanaVideoTransformer3DModel(
        in_channels=16,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=HIDDEN,
        sample_size=8,
        patch_size=(1, 2, 2),
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    return d.SanaVideoPipeline(
        tokenizer=parts.words(32),
        text_encoder=parts.gemma2(),
        vae=parts.wan_vae(),
        transformer=transformer,
        scheduler=parts.flow(),
    )


@family("cogvideox", "CogVideoXPipeline", "video", **SMALL, num_frames=5)
def _cogvideox() -> Any:
    transformer = d.CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=4,
        text_embed_dim=HIDDEN,
        num_layers=2,
        sample_width=2,
        sample_height=2,
        sample_frames=5,
        max_text_seq_length=16,
    )
    vae = d.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    return d.CogVideoXPipeline(**parts.t5_pair(), transformer=transformer, vae=vae, scheduler=d.DDIMScheduler())


@family("mochi", "MochiPipeline", "video", **SMALL, num_frames=7)
def _mochi() -> Any:
    transformer = d.MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        qk_norm="rms_norm",
        text_embed_dim=HIDDEN,
        time_embed_dim=4,
        activation_fn="swiglu",
        max_sequence_length=16,
    )
    vae = d.AutoencoderKLMochi(
        latent_channels=12,
        out_channels=3,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )
    return d.MochiPipeline(**parts.t5_pair(), transformer=transformer, vae=vae, scheduler=parts.flow())


@family("ltx", "LTXPipeline", "video", **{**SMALL, "height": 32, "width": 32}, num_frames=9)
def _ltx() -> Any:
    transformer = d.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=2,
        caption_channels=HIDDEN,
    )
    vae = d.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1, 1, 1, 1),
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
    )
    return d.LTXPipeline(**parts.t5_pair(), transformer=transformer, vae=vae, scheduler=parts.flow())


@family("latte", "LattePipeline", "video", height=16, width=16, video_length=2, clean_caption=False)
def _latte() -> Any:
    transformer = d.LatteTransformer3DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=HIDDEN,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        video_length=2,
    )
    return d.LattePipeline(**parts.t5_pair(), transformer=transformer, vae=parts.vae(), scheduler=ddim())


@family("allegro", "AllegroPipeline", "video", **SMALL, num_frames=8, clean_caption=False)
def _allegro() -> Any:
    transformer = d.AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        cross_attention_dim=24,
        sample_width=8,
        sample_height=8,
        sample_frames=8,
        caption_channels=HIDDEN,
    )
    vae = d.AutoencoderKLAllegro(
        down_block_types=("AllegroDownBlock3D",) * 4,
        up_block_types=("AllegroUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    vae.enable_tiling()  # it decodes in no other way
    return d.AllegroPipeline(**parts.t5_pair(), transformer=transformer, vae=vae, scheduler=d.DDIMScheduler())


@family("easyanimate", "EasyAnimatePipeline", "video", height=16, width=16, num_frames=5, negative_prompt="blurry")
def _easyanimate() -> Any:
    transformer = d.EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=4,
        text_embed_dim=HIDDEN,
        num_layers=1,
        sample_width=16,
        sample_height=16,
        patch_size=2,
    )
    vae = d.AutoencoderKLMagvit(
        down_block_types=("SpatialDownBlock3D",) + ("SpatialTemporalDownBlock3D",) * 3,
        up_block_types=("SpatialUpBlock3D",) + ("SpatialTemporalUpBlock3D",) * 3,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        spatial_group_norm=False,
    )
    made = {"text_encoder": parts.qwen2_vl(), "tokenizer": parts.words(), "transformer": transformer}
    return d.EasyAnimatePipeline(vae=vae, scheduler=parts.flow(), **made)
