"""Families of Hunyuan: pictures and videos."""

from __future__ import annotations

from typing import Any

import diffusers as d

from . import parts
from .family import family
from .parts import HIDDEN

SMALL = {"height": 16, "width": 16}


def hunyuan_dit_parts() -> dict[str, Any]:
    """What Hunyuan-DiT takes."""
    transformer = d.HunyuanDiT2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        cross_attention_dim=HIDDEN,
        cross_attention_dim_t5=HIDDEN,
        pooled_projection_dim=16,
        hidden_size=16,
        text_len=77,
        text_len_t5=256,
        activation_fn="gelu-approximate",
    )
    return {
        "vae": parts.vae(),
        "text_encoder": parts.bert(),
        "tokenizer": parts.words(77),
        "transformer": transformer,
        "scheduler": d.DDPMScheduler(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
        "text_encoder_2": parts.t5(),
        "tokenizer_2": parts.t5_tokenizer(),
    }


@family("hunyuan-dit", "HunyuanDiTPipeline", **SMALL, use_resolution_binning=False)
def _hunyuan_dit() -> Any:
    return d.HunyuanDiTPipeline(**hunyuan_dit_parts())


@family("hunyuan-image", "HunyuanImagePipeline", height=16, width=16)
def _hunyuan_image() -> Any:
    from diffusers.guiders import AdaptiveProjectedMixGuidance

    guiders = [AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=1) for _ in range(2)]
    return hunyuan_image_pipeline(guiders[0], guiders[1])


@family("hunyuan-image-distilled", "HunyuanImagePipeline", height=16, width=16, unguided=True)
def _hunyuan_image_distilled() -> Any:
    return hunyuan_image_pipeline(None, None)


def hunyuan_image_pipeline(guider: Any, ocr_guider: Any) -> Any:
    """HunyuanImage under these guiders, or distilled without any."""
    transformer = d.HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=(1, 1),
        guidance_embeds=guider is None,
        text_embed_dim=HIDDEN,
        text_embed_2_dim=HIDDEN,
        rope_axes_dim=(4, 4),
    )
    transformer.context_embedder_2 = parts.narrow_byt5_projection(16)
    vae = d.AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        scaling_factor=0.5,
        spatial_compression_ratio=2,
        sample_size=16,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
    pipeline = d.HunyuanImagePipeline(
        scheduler=parts.flow(shift=3.0),
        vae=vae,
        text_encoder=parts.qwen25_vl(),
        tokenizer=parts.words(),
        **parts.byt5(),
        transformer=transformer,
        guider=guider,
        ocr_guider=ocr_guider,
    )
    pipeline.tokenizer_max_length, pipeline.tokenizer_2_max_length = 64, 16
    return pipeline


def hunyuan_video_vae(channels: int = 4) -> Any:
    """Factor 8 in space, 4 in time."""
    return d.AutoencoderKLHunyuanVideo(
        latent_channels=channels,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )


@family("hunyuan-video", "HunyuanVideoPipeline", "video", **SMALL, max_sequence_length=16, num_frames=5, unguided=True,
        prompt_template={"template": "{}", "crop_start": 0})  # fmt: skip
def _hunyuan_video() -> Any:
    transformer = d.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=HIDDEN,
        pooled_projection_dim=HIDDEN,
        rope_axes_dim=(2, 4, 4),
    )
    return d.HunyuanVideoPipeline(
        text_encoder=parts.llama(),
        tokenizer=parts.words(),
        transformer=transformer,
        vae=hunyuan_video_vae(),
        scheduler=parts.flow(shift=3.0),
        text_encoder_2=parts.clip(positions=77),
        tokenizer_2=parts.clip_tokenizer(),
    )


@family("hunyuan-video-1.5", "HunyuanVideo15Pipeline", "video", height=16, width=16, num_frames=5)
def _hunyuan_video15() -> Any:
    transformer = d.HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        patch_size=1,
        patch_size_t=1,
        text_embed_dim=HIDDEN,
        text_embed_2_dim=HIDDEN,
        image_embed_dim=HIDDEN,
        rope_axes_dim=(2, 2, 4),
        target_size=16,
        task_type="t2v",
    )
    vae = d.AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
    transformer.context_embedder_2 = parts.narrow_byt5_projection(16)
    pipeline = d.HunyuanVideo15Pipeline(
        text_encoder=parts.qwen25_vl(text_only=True),
        tokenizer=parts.words(),
        transformer=transformer,
        vae=vae,
        scheduler=parts.flow(shift=3.0),
        **parts.byt5(),
        guider=d.guiders.ClassifierFreeGuidance(guidance_scale=4.0),
    )
    pipeline.tokenizer_max_length, pipeline.tokenizer_2_max_length, pipeline.vision_num_semantic_tokens = 96, 16, 4
    pipeline.prompt_template_encode_start_idx = 20  # the template has fewer tokens here than in the real tokenizer
    return pipeline
