"""Families of Kandinsky: pictures and videos."""

from __future__ import annotations

from typing import Any

import diffusers as d

from . import parts
from .family import family
from .hunyuan import hunyuan_video_vae
from .parts import HIDDEN
from .unets import ddim, simple_unet

LARGER = {"height": 32, "width": 32, "max_sequence_length": 16}


def movq() -> Any:
    """Kandinsky's decoder: factor 2."""
    return d.VQModel(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )


@family("kandinsky-2.2", "KandinskyV22CombinedPipeline", height=64, width=64, prior_num_inference_steps=2,
        target="attention")  # fmt: skip
def _kandinsky22() -> Any:
    import transformers as t

    prior = d.PriorTransformer(
        num_attention_heads=2, attention_head_dim=8, embedding_dim=HIDDEN, num_layers=1, num_embeddings=16
    )
    prior.clip_std.data.fill_(1.0)
    vision = t.CLIPVisionConfig(
        hidden_size=HIDDEN, projection_dim=HIDDEN, intermediate_size=HIDDEN, num_attention_heads=2, patch_size=16,
        image_size=32, num_hidden_layers=1,
    )  # fmt: skip
    tokenizer = parts.clip_tokenizer()
    return d.KandinskyV22CombinedPipeline(
        unet=simple_unet(4, addition_embed_type="image", encoder_hid_dim_type="image_proj"),
        scheduler=ddim(),
        movq=movq(),
        prior_prior=prior,
        prior_image_encoder=t.CLIPVisionModelWithProjection(vision),
        prior_text_encoder=parts.clip(projection=True),
        prior_tokenizer=tokenizer,
        prior_scheduler=d.UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample"),
        prior_image_processor=t.CLIPImageProcessor(crop_size=32, size=32),
    )


@family("kandinsky-3", "Kandinsky3Pipeline", height=16, width=16)
def _kandinsky3() -> Any:
    unet = d.Kandinsky3UNet(
        in_channels=4,
        time_embedding_dim=4,
        groups=2,
        attention_head_dim=4,
        layers_per_block=3,
        block_out_channels=(32, 64),
        cross_attention_dim=4,
        encoder_hid_dim=HIDDEN,
    )
    return d.Kandinsky3Pipeline(**parts.t5_pair(), unet=unet, scheduler=d.DDPMScheduler(), movq=movq())


def _kandinsky5(vae: Any, kind: Any) -> Any:
    transformer = d.Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=HIDDEN,
        in_text_dim2=HIDDEN,
        time_dim=16,
        out_visual_dim=4,
        patch_size=(1, 2, 2),
        model_dim=16,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(2, 2, 4),
        visual_cond=False,
        attention_type="regular",
    )
    return kind(
        transformer=transformer,
        vae=vae,
        text_encoder=parts.qwen25_vl(),
        tokenizer=parts.words(),
        text_encoder_2=parts.clip(positions=77),
        tokenizer_2=parts.clip_tokenizer(),
        scheduler=parts.flow(shift=3.0),
    )


@family("kandinsky-5-video", "Kandinsky5T2VPipeline", "video", **LARGER, num_frames=5)
def _kandinsky5_video() -> Any:
    return _kandinsky5(hunyuan_video_vae(), d.Kandinsky5T2VPipeline)


@family("kandinsky-5-image", "Kandinsky5T2IPipeline", **LARGER)
def _kandinsky5_image() -> Any:
    pipeline = _kandinsky5(parts.deep_vae(), d.Kandinsky5T2IPipeline)
    pipeline.resolutions = [(32, 32)]
    return pipeline
