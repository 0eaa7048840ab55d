"""Families of image transformers with cross-attention or one sequence of text and picture."""

from __future__ import annotations

from typing import Any

import diffusers as d

from tests.pipelines import pixart

from . import parts
from .family import family
from .parts import HIDDEN

SMALL = {"height": 16, "width": 16}
PLAIN = {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 16}

family("pixart-alpha", "PixArtAlphaPipeline", **PLAIN)(pixart.__wrapped__)


def pixart_transformer(**more: Any) -> Any:
    """PixArt's transformer, with biases in its attention."""
    return d.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=16,
        sample_size=8,
        caption_channels=HIDDEN,
        attention_bias=True,
        **more,
    )


@family("pixart-sigma", "PixArtSigmaPipeline", **SMALL, **PLAIN)
def _pixart_sigma() -> Any:
    made = {**pixart.__wrapped__().components, "transformer": pixart_transformer(), "scheduler": d.DDIMScheduler()}
    return d.PixArtSigmaPipeline(**made)


def sana_parts(scheduler: Any = None, **more: Any) -> dict[str, Any]:
    """What Sana takes; ``more`` goes to its transformer."""
    transformer = d.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=HIDDEN,
        sample_size=8,
        **more,
    )
    return {
        "tokenizer": parts.words(32),
        "text_encoder": parts.gemma2(),
        "vae": parts.deep_compression_vae(),
        "transformer": transformer,
        "scheduler": scheduler or parts.flow(shift=3.0),
    }


SANA = {"height": 32, "width": 32, **PLAIN, "complex_human_instruction": None}


@family("sana", "SanaPipeline", **SANA)
def _sana() -> Any:
    return d.SanaPipeline(**sana_parts())


@family("sana-sprint", "SanaSprintPipeline", **SANA, unguided=True)
def _sana_sprint() -> Any:
    return d.SanaSprintPipeline(**sana_parts(d.SCMScheduler(), qk_norm="rms_norm_across_heads", guidance_embeds=True))


@family("auraflow", "AuraFlowPipeline", **SMALL)
def _auraflow() -> Any:
    transformer = d.AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=HIDDEN,
        out_channels=4,
        pos_embed_max_size=64,
    )
    return d.AuraFlowPipeline(
        tokenizer=parts.t5_tokenizer(),
        text_encoder=parts.umt5(),
        vae=parts.vae(),
        transformer=transformer,
        scheduler=parts.flow(),
    )


@family("lumina", "LuminaPipeline", **SMALL, clean_caption=False)
def _lumina() -> Any:
    transformer = d.LuminaNextDiT2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=16,
        num_layers=2,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        learn_sigma=True,
        qk_norm=True,
        cross_attention_dim=HIDDEN,
    )
    made = {"vae": parts.vae(), "text_encoder": parts.gemma(), "tokenizer": parts.words(32)}
    return d.LuminaPipeline(transformer=transformer, scheduler=parts.flow(), **made)


@family("lumina-2", "Lumina2Pipeline", **SMALL, max_sequence_length=64, fast=True)
def _lumina2() -> Any:
    transformer = d.Lumina2Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=16,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(100, 32, 32),
        cap_feat_dim=HIDDEN,
    )
    made = {"vae": parts.vae(), "text_encoder": parts.gemma2(), "tokenizer": parts.words(64)}
    return d.Lumina2Pipeline(transformer=transformer, scheduler=parts.flow(), **made)


def _z_image() -> Any:
    transformer = d.ZImageTransformer2DModel(
        in_channels=4,
        dim=16,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=HIDDEN,
        axes_dims=[4, 2, 2],
        axes_lens=[128, 32, 32],
    )
    made = {"scheduler": parts.flow(), "vae": parts.vae(), "text_encoder": parts.qwen3(), "tokenizer": parts.words()}
    return d.ZImagePipeline(**made, transformer=transformer)


Z_IMAGE = {"height": 32, "width": 32, "max_sequence_length": 16}
family("z-image", "ZImagePipeline", **Z_IMAGE, guidance_scale=3.0)(_z_image)
family("z-image-turbo", "ZImagePipeline", **Z_IMAGE, guidance_scale=0.0, unguided=True)(_z_image)


@family("cogview-3", "CogView3PlusPipeline", **SMALL, max_sequence_length=16)
def _cogview3() -> Any:
    transformer = d.CogView3PlusTransformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        out_channels=4,
        text_embed_dim=HIDDEN,
        time_embed_dim=8,
        condition_dim=2,
        pos_embed_max_size=8,
        sample_size=8,
    )
    made = {"vae": parts.vae(), "scheduler": d.CogVideoXDDIMScheduler(), "transformer": transformer}
    return d.CogView3PlusPipeline(**parts.t5_pair(), **made)


@family("cogview-4", "CogView4Pipeline", **SMALL, max_sequence_length=16)
def _cogview4() -> Any:
    transformer = d.CogView4Transformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        out_channels=4,
        text_embed_dim=HIDDEN,
        time_embed_dim=8,
        condition_dim=4,
        rope_axes_dim=(16, 16),
    )
    shift = {"use_dynamic_shifting": True, "time_shift_type": "linear", "base_shift": 0.25, "max_shift": 0.75}
    made = {"vae": parts.vae(), "scheduler": parts.flow(**shift), "transformer": transformer}
    return d.CogView4Pipeline(tokenizer=parts.words(), text_encoder=parts.glm(), **made)


def _prx() -> Any:
    transformer = d.PRXTransformer2DModel(
        patch_size=2,
        in_channels=4,
        context_in_dim=HIDDEN,
        hidden_size=16,
        mlp_ratio=2.0,
        num_heads=2,
        depth=2,
        axes_dim=[4, 4],
    )
    parts.provide("diffusers.pipelines.prx.pipeline_prx", "ftfy", parts.PlainText)
    made = {"transformer": transformer, "scheduler": parts.flow(), "vae": parts.vae()}
    return d.PRXPipeline(text_encoder=parts.t5gemma(), tokenizer=parts.words(32), **made)


PRX = {**SMALL, "use_resolution_binning": False}
family("prx", "PRXPipeline", **PRX, guidance_scale=1.0, unguided=True)(_prx)
# Guided, the pipeline itself fails for more than one prompt: it has one timestep for each half, not for each row.
family("prx-guided", "PRXPipeline", **PRX, guidance_scale=4.0, prompts=1)(_prx)


@family("hidream", "HiDreamImagePipeline", height=32, width=32, max_sequence_length=16, fast=True)
def _hidream() -> Any:
    transformer = d.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[HIDDEN, HIDDEN],
        text_emb_dim=2 * HIDDEN,
        num_routed_experts=4,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32),
        llama_layers=(0, 1),
    )
    tokenizer = parts.clip_tokenizer()
    pipeline = d.HiDreamImagePipeline(
        scheduler=parts.flow(),
        vae=parts.vae(),
        text_encoder=parts.clip(projection=True, positions=218),
        tokenizer=tokenizer,
        text_encoder_2=parts.clip(projection=True, positions=218),
        tokenizer_2=tokenizer,
        text_encoder_3=parts.t5(),
        tokenizer_3=parts.t5_tokenizer(),
        text_encoder_4=parts.llama(causal=True),
        tokenizer_4=parts.words(),
        transformer=transformer,
    )
    pipeline.default_sample_size = 16  # every size is scaled to this one's area
    return pipeline


@family("bria-fibo", "BriaFiboPipeline", height=32, width=32, negative_prompt="blurry", max_sequence_length=64)
def _bria_fibo() -> Any:
    transformer = d.BriaFiboTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * HIDDEN,
        text_encoder_dim=HIDDEN,
        pooled_projection_dim=None,
        axes_dims_rope=[0, 4, 4],
    )
    made = {"scheduler": parts.flow(), "vae": parts.wan_vae(16), "transformer": transformer}
    return d.BriaFiboPipeline(**made, text_encoder=parts.smollm3(), tokenizer=parts.words())


@family("amused", "AmusedPipeline", height=16, width=16, one_generator=True)
def _amused() -> Any:
    transformer = d.UVit2DModel(
        hidden_size=16,
        cond_embed_dim=HIDDEN,
        encoder_hidden_size=HIDDEN,
        micro_cond_encode_dim=4,
        micro_cond_embed_dim=5 * 4,
        use_bias=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        vocab_size=33,
        codebook_size=32,
        in_channels=16,
        block_out_channels=16,
        block_num_heads=2,
        sample_size=8,
        downsample=True,
        upsample=True,
        layer_norm_eps=1e-6,
        ln_elementwise_affine=True,
        num_res_blocks=1,
    )
    vqvae = d.VQModel(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        layers_per_block=1,
        latent_channels=8,
        num_vq_embeddings=32,
        norm_num_groups=4,
        sample_size=16,
        mid_block_add_attention=False,
        lookup_from_codebook=True,
    )
    return d.AmusedPipeline(
        vqvae=vqvae,
        tokenizer=parts.clip_tokenizer(),
        text_encoder=parts.clip(projection=True),
        transformer=transformer,
        scheduler=d.AmusedScheduler(mask_token_id=32),
    )
