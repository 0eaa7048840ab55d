"""Tiny diffusers pipelines with random weights, built from configs; nothing is downloaded.

Each factory builds once per process and hands out the same pipeline, in evaluation mode, with its progress bar off.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from cad_fast.zoo.training.models import make_tokenizer

HIDDEN = 16
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def _ready(pipeline: Any) -> Any:
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _seeded(factory: Any) -> Any:
    @functools.cache
    @functools.wraps(factory)
    def build(*args: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return _ready(factory(*args))

    return build


@functools.cache
def clip_tokenizer() -> CLIPTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return make_tokenizer(Path(folder))


@functools.cache
def t5_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that spells words out, with T5's special tokens."""
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    for letter in "abcdefghijklmnopqrstuvwxyz0123456789.,'-":
        vocabulary[letter] = len(vocabulary)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Split("", "isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=32
    )


def _clip_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=HIDDEN,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=64, d_model=HIDDEN, d_kv=8, d_ff=HIDDEN, num_layers=1, num_heads=2, dropout_rate=0.0)
    )


def _vae(channels: int = 4) -> AutoencoderKL:
    """Factor 2: 16x16 pixels become 8x8 latents."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
        mid_block_add_attention=False,
        scaling_factor=0.5,
        shift_factor=0.1,
    )


def _unet(cross_attention_dim: int, **more: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=cross_attention_dim,
        attention_head_dim=2,
        **more,
    )


@_seeded
def stable_diffusion(prediction_type: str = "epsilon", scheduler: str = "ddim") -> StableDiffusionPipeline:
    """8x8 latents; DDIM, or Euler, whose model input is scaled."""
    classes = {"ddim": DDIMScheduler, "euler": EulerDiscreteScheduler, "dpm": DPMSolverMultistepScheduler}
    more = {"clip_sample": False} if scheduler == "ddim" else {}
    tokenizer = clip_tokenizer()
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_clip_config(tokenizer)),
        tokenizer=tokenizer,
        unet=_unet(HIDDEN),
        scheduler=classes[scheduler](**BETAS, prediction_type=prediction_type, steps_offset=1, **more),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@_seeded
def stable_diffusion_xl() -> StableDiffusionXLPipeline:
    """Two text encoders and added conditions (a nested dict among the UNet's arguments)."""
    tokenizer = clip_tokenizer()
    return StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_clip_config(tokenizer)),
        text_encoder_2=CLIPTextModelWithProjection(_clip_config(tokenizer)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=_unet(
            2 * HIDDEN,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=HIDDEN + 6 * 4,
        ),
        scheduler=EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
    )


def sd3_transformer(**more: Any) -> SD3Transformer2DModel:
    """SD3's transformer; with queries and keys normed and two attentions in a block it is SD3.5's."""
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * HIDDEN,
        caption_projection_dim=16,
        pooled_projection_dim=2 * HIDDEN,
        pos_embed_max_size=8,
        **more,
    )


@_seeded
def stable_diffusion_3() -> StableDiffusion3Pipeline:
    """A flow-matching transformer, guided in one batch, without its T5 encoder."""
    tokenizer = clip_tokenizer()
    config = _clip_config(tokenizer)
    return StableDiffusion3Pipeline(
        transformer=sd3_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(),
        text_encoder=CLIPTextModelWithProjection(config),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


@_seeded
def flux() -> FluxPipeline:
    """A guidance-distilled transformer with packed latents; with ``true_cfg_scale`` guided by separate calls."""
    tokenizer = clip_tokenizer()
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(),
        text_encoder=CLIPTextModel(_clip_config(tokenizer)),
        tokenizer=tokenizer,
        text_encoder_2=_t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=HIDDEN,
            pooled_projection_dim=HIDDEN,
            guidance_embeds=True,
            axes_dims_rope=(2, 2, 4),
        ),
    )


@_seeded
def pixart() -> PixArtAlphaPipeline:
    """A transformer that also predicts a variance: 8 output channels for 4 input channels."""
    return PixArtAlphaPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=_t5(),
        vae=_vae(),
        transformer=PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=1,
            cross_attention_dim=16,
            sample_size=8,
            caption_channels=HIDDEN,
            use_additional_conditions=False,
        ),
        scheduler=DPMSolverMultistepScheduler(**BETAS),
    )


# name -> (factory, further arguments of the pipeline)
PIPELINES: dict[str, tuple[Any, dict[str, Any]]] = {
    "sd": (stable_diffusion, {}),
    "sd-v": (functools.partial(stable_diffusion, "v_prediction", "euler"), {}),
    "sdxl": (stable_diffusion_xl, {}),
    "sd3": (stable_diffusion_3, {}),
    "flux": (flux, {"height": 16, "width": 16, "max_sequence_length": 16}),
    "flux-true-cfg": (
        flux,
        {"height": 16, "width": 16, "max_sequence_length": 16, "true_cfg_scale": 4.0, "negative_prompt": "a cat"},
    ),
    "pixart": (pixart, {"max_sequence_length": 16, "use_resolution_binning": False, "clean_caption": False}),
}
UNGUIDED = {"flux"}
