"""Families whose text runs beside the picture in joint attention: Stable Diffusion 3, FLUX and their relatives."""

from __future__ import annotations

from typing import Any

import diffusers as d

from tests.pipelines import flux, sd3_transformer, stable_diffusion_3

from . import parts
from .family import family
from .parts import HIDDEN
from .unets import CONTROL

# Sizes of FLUX and its relatives: one block of two streams, one of a single stream.
ONE_OF_EACH = {
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": HIDDEN,
}

family("sd3", "StableDiffusion3Pipeline", fast=True)(stable_diffusion_3.__wrapped__)
FLUX = {"height": 16, "width": 16, "max_sequence_length": 16}
family("flux", "FluxPipeline", unguided=True, fast=True, **FLUX)(flux.__wrapped__)


@family("sd3-t5", "StableDiffusion3Pipeline", max_sequence_length=16)
def _sd3_with_t5() -> Any:
    made = stable_diffusion_3.__wrapped__().components
    made.update(text_encoder_3=parts.t5(2 * HIDDEN), tokenizer_3=parts.t5_tokenizer(), transformer=sd3_transformer())
    return d.StableDiffusion3Pipeline(**made)


@family("sd3.5", "StableDiffusion3Pipeline")
def _sd35() -> Any:
    made = stable_diffusion_3.__wrapped__().components
    made["transformer"] = sd3_transformer(qk_norm="rms_norm", dual_attention_layers=(0,))
    return d.StableDiffusion3Pipeline(**made)


@family("sd3-skip-layers", "StableDiffusion3Pipeline", skip_guidance_layers=[0], skip_layer_guidance_start=0.0,
        skip_layer_guidance_stop=1.0)  # fmt: skip
def _sd3_skipping() -> Any:
    """Guidance with a third term, from the transformer without some of its blocks."""
    return stable_diffusion_3.__wrapped__()


def flux_transformer(**more: Any) -> Any:
    """FLUX.1's transformer; ``guidance_embeds`` off is schnell."""
    sizes = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2}
    return d.FluxTransformer2DModel(
        in_channels=16,
        joint_attention_dim=HIDDEN,
        pooled_projection_dim=HIDDEN,
        axes_dims_rope=(2, 2, 4),
        **{"guidance_embeds": True, **sizes, **more},
    )


@family("flux-schnell", "FluxPipeline", unguided=True, **FLUX)
def _schnell() -> Any:
    return d.FluxPipeline(**{**flux.__wrapped__().components, "transformer": flux_transformer(guidance_embeds=False)})


@family("flux-true-cfg", "FluxPipeline", **FLUX, true_cfg_scale=4.0, negative_prompt="blurry")
def _true_cfg() -> Any:
    return flux.__wrapped__()


@family("flux-controlnet", "FluxControlNetPipeline", unguided=True, **FLUX, control_image=CONTROL)
def _flux_controlnet() -> Any:
    made = flux.__wrapped__().components
    control = d.FluxControlNetModel(
        in_channels=16,
        **ONE_OF_EACH,
        pooled_projection_dim=HIDDEN,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=True,
    )
    return d.FluxControlNetPipeline(**made, controlnet=control)


def flux2_transformer(**more: Any) -> Any:
    """FLUX.2's transformer."""
    return d.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=4,
        **ONE_OF_EACH,
        timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
        **more,
    )


def flux2_vae() -> Any:
    """Factor 1, and 2 by 2 latents in a token."""
    return d.AutoencoderKLFlux2(
        block_out_channels=(4,),
        layers_per_block=1,
        latent_channels=1,
        norm_num_groups=1,
        sample_size=16,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


FLUX2 = {"height": 8, "width": 8, "text_encoder_out_layers": (1,)}


@family("flux2", "Flux2Pipeline", unguided=True, fast=True, **FLUX2, max_sequence_length=100)
def _flux2() -> Any:
    return d.Flux2Pipeline(
        scheduler=parts.flow(),
        vae=flux2_vae(),
        text_encoder=parts.mistral3(),
        tokenizer=parts.words(),
        transformer=flux2_transformer(),
    )


def _klein(distilled: bool) -> Any:
    return d.Flux2KleinPipeline(
        scheduler=parts.flow(),
        vae=flux2_vae(),
        text_encoder=parts.qwen3(causal=True),
        tokenizer=parts.words(),
        transformer=flux2_transformer(guidance_embeds=False),
        is_distilled=distilled,
    )


@family("flux2-klein", "Flux2KleinPipeline", unguided=True, **FLUX2, max_sequence_length=16)
def _flux2_klein() -> Any:
    return _klein(distilled=True)


@family("flux2-klein-base", "Flux2KleinPipeline", **FLUX2, max_sequence_length=16)
def _flux2_klein_base() -> Any:
    return _klein(distilled=False)


@family("chroma", "ChromaPipeline", height=8, width=8, max_sequence_length=16, negative_prompt="blurry")
def _chroma() -> Any:
    transformer = d.ChromaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        **ONE_OF_EACH,
        axes_dims_rope=(2, 2, 4),
        approximator_hidden_dim=16,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    return d.ChromaPipeline(scheduler=parts.flow(), vae=parts.flat_vae(1), **parts.t5_pair(), transformer=transformer)


@family("bria", "BriaPipeline", height=16, width=16, max_sequence_length=16, negative_prompt="blurry")
def _bria() -> Any:
    transformer = d.BriaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        **ONE_OF_EACH,
        pooled_projection_dim=None,
        axes_dims_rope=[0, 4, 4],
    )
    made = {"scheduler": parts.flow(), "vae": parts.flat_vae(4), "transformer": transformer}
    return d.BriaPipeline(**made, **parts.t5_pair())


@family("ovis-image", "OvisImagePipeline", height=16, width=16, max_sequence_length=32, negative_prompt="blurry")
def _ovis() -> Any:
    transformer = d.OvisImageTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        **ONE_OF_EACH,
        axes_dims_rope=(2, 2, 4),
    )
    made = {"scheduler": parts.flow(), "vae": parts.flat_vae(1), "transformer": transformer}
    return d.OvisImagePipeline(**made, text_encoder=parts.qwen3(), tokenizer=parts.words())


@family("longcat-image", "LongCatImagePipeline", height=16, width=16, enable_prompt_rewrite=False,
        negative_prompt="blurry")  # fmt: skip
def _longcat() -> Any:
    transformer = d.LongCatImageTransformer2DModel(
        patch_size=1,
        in_channels=64,
        **ONE_OF_EACH,
        pooled_projection_dim=HIDDEN,
        axes_dims_rope=[2, 2, 4],
    )
    made = {"scheduler": parts.flow(), "vae": parts.flat_vae(16), "transformer": transformer}
    tokenizer = parts.words()
    return d.LongCatImagePipeline(**made, text_encoder=parts.qwen25_vl(), tokenizer=tokenizer, text_processor=tokenizer)


def qwen_image_transformer(**more: Any) -> Any:
    """Qwen-Image's transformer."""
    return d.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=HIDDEN,
        axes_dims_rope=(4, 2, 2),
        **more,
    )


def _qwen_image() -> Any:
    return d.QwenImagePipeline(
        scheduler=parts.flow(),
        vae=parts.qwen_vae(),
        text_encoder=parts.qwen25_vl(),
        tokenizer=parts.words(),
        transformer=qwen_image_transformer(),
    )


QWEN = {"height": 16, "width": 16, "max_sequence_length": 16}
family("qwen-image", "QwenImagePipeline", **QWEN, true_cfg_scale=3.0, negative_prompt="blurry", fast=True)(_qwen_image)
family("qwen-image-unguided", "QwenImagePipeline", **QWEN, true_cfg_scale=1.0, unguided=True)(_qwen_image)


@family("krea-2", "Krea2Pipeline", **QWEN, negative_prompt="blurry")
def _krea2() -> Any:
    transformer = d.Krea2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=16,
        timestep_embed_dim=8,
        text_hidden_dim=HIDDEN,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=1,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 2, 2),
    )
    return d.Krea2Pipeline(
        scheduler=parts.flow(),
        vae=parts.qwen_vae(),
        text_encoder=parts.qwen3_vl(),
        tokenizer=parts.words(),
        transformer=transformer,
        text_encoder_select_layers=(0, 1, 2),
    )
