"""Families with a UNet: Stable Diffusion and what grew from it, DeepFloyd IF, Kandinsky, latent diffusion."""

from __future__ import annotations

from typing import Any

import diffusers as d
import torch

from cad_fast import PipelinePart
from tests.pipelines import _unet, stable_diffusion, stable_diffusion_xl

from . import parts
from .family import family
from .parts import BETAS, HIDDEN


def ddim(**more: Any) -> Any:
    """DDIM without clipping."""
    return d.DDIMScheduler(**BETAS, steps_offset=1, clip_sample=False, **more)


def sd_parts(**more: Any) -> dict[str, Any]:
    """What every Stable Diffusion pipeline takes; ``more`` goes to the UNet."""
    return {
        "vae": parts.vae(),
        "text_encoder": parts.clip(),
        "tokenizer": parts.clip_tokenizer(),
        "unet": _unet(HIDDEN, **more),
        "scheduler": ddim(),
    }


def without_checker() -> dict[str, Any]:
    """No safety checker."""
    return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def sdxl_unet(**more: Any) -> Any:
    """A UNet with SDXL's added conditions and linear projections."""
    sizes = {"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": HIDDEN + 6 * 4}
    return _unet(2 * HIDDEN, addition_embed_type="text_time", use_linear_projection=True, **sizes, **more)


def sdxl_parts() -> dict[str, Any]:
    """What every SDXL pipeline takes."""
    return {
        "vae": parts.vae(),
        "text_encoder": parts.clip(),
        "text_encoder_2": parts.clip(projection=True),
        "tokenizer": parts.clip_tokenizer(),
        "tokenizer_2": parts.clip_tokenizer(),
        "unet": sdxl_unet(),
        "scheduler": d.EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading"),
    }


family("sd", "StableDiffusionPipeline", fast=True)(stable_diffusion.__wrapped__)
family("sd-unguided", "StableDiffusionPipeline", guidance_scale=1.0, unguided=True)(stable_diffusion.__wrapped__)
family("sdxl", "StableDiffusionXLPipeline")(stable_diffusion_xl.__wrapped__)


@family("sd-v-euler", "StableDiffusionPipeline")
def _v_prediction() -> Any:
    return stable_diffusion.__wrapped__("v_prediction", "euler")


@family("sd-dpm", "StableDiffusionPipeline")
def _dpm() -> Any:
    return stable_diffusion.__wrapped__("epsilon", "dpm")


@family("sd-heun", "StableDiffusionPipeline", calls=3)
def _heun() -> Any:
    """Heun's method calls the denoiser twice in each step but the last: 3 calls for 2 steps."""
    pipeline = stable_diffusion.__wrapped__()
    pipeline.scheduler = d.HeunDiscreteScheduler(**BETAS)
    return pipeline


@family("sd-linear-projection", "StableDiffusionPipeline")
def _sd2() -> Any:
    return d.StableDiffusionPipeline(**sd_parts(use_linear_projection=True), **without_checker())


@family("lcm", "LatentConsistencyModelPipeline", unguided=True, original_inference_steps=10)
def _lcm() -> Any:
    made = {**sd_parts(time_cond_proj_dim=8), "scheduler": d.LCMScheduler(**BETAS)}
    return d.LatentConsistencyModelPipeline(**made, **without_checker())


def control_net(**more: Any) -> Any:
    """A ControlNet of the UNet's sizes, whose outputs are not zero."""
    return d.ControlNetModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        conditioning_embedding_out_channels=(4, 4),
        attention_head_dim=2,
        norm_num_groups=4,
        **more,
    )


CONTROL = torch.linspace(0, 1, 3 * 16 * 16).view(1, 3, 16, 16)


@family("controlnet-sd", "StableDiffusionControlNetPipeline", image=CONTROL)
def _controlnet() -> Any:
    made = {**sd_parts(), "controlnet": control_net(cross_attention_dim=HIDDEN)}
    return d.StableDiffusionControlNetPipeline(**made, **without_checker())


@family("controlnet-sdxl", "StableDiffusionXLControlNetPipeline", image=CONTROL)
def _controlnet_xl() -> Any:
    control = control_net(
        cross_attention_dim=2 * HIDDEN,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=HIDDEN + 6 * 4,
    )
    return d.StableDiffusionXLControlNetPipeline(**sdxl_parts(), controlnet=control)


@family("gligen", "StableDiffusionGLIGENPipeline", gligen_phrases=["a cat"], gligen_boxes=[[0.1, 0.1, 0.6, 0.6]])
def _gligen() -> Any:
    made = sd_parts(attention_type="gated", use_linear_projection=True)
    return d.StableDiffusionGLIGENPipeline(**made, **without_checker())


@family("sag", "StableDiffusionSAGPipeline")
def _self_attention_guidance() -> Any:
    return d.StableDiffusionSAGPipeline(**sd_parts(), **without_checker())


@family("panorama", "StableDiffusionPanoramaPipeline", height=16, width=32, view_batch_size=2)
def _panorama() -> Any:
    return d.StableDiffusionPanoramaPipeline(**sd_parts(), **without_checker())


@family("latent-diffusion", "LDMTextToImagePipeline", output_type="pil", guidance_scale=3.0)
def _latent_diffusion() -> Any:
    made = sd_parts()
    return d.LDMTextToImagePipeline(
        vqvae=made["vae"],
        bert=parts.clip(positions=77),  # the pipeline pads prompts to this length
        tokenizer=made["tokenizer"],
        unet=made["unet"],
        scheduler=made["scheduler"],
    )


def simple_unet(in_channels: int, **more: Any) -> Any:
    """The UNet of DeepFloyd IF and Kandinsky 2: attention with added keys and values of the text."""
    return d.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        in_channels=in_channels,
        out_channels=2 * in_channels,
        cross_attention_dim=32,
        encoder_hid_dim=HIDDEN,
        attention_head_dim=4,
        norm_num_groups=4,
        resnet_time_scale_shift="scale_shift",
        **more,
    )


@family("deepfloyd-if", "IFPipeline", output_type="pt", height=8, width=8, clean_caption=False,
        target="attention")  # fmt: skip
def _if() -> Any:
    unet = simple_unet(
        3, addition_embed_type="text", addition_embed_type_num_heads=2, cross_attention_norm="group_norm"
    )
    return d.IFPipeline(
        **parts.t5_pair(),
        unet=unet,
        scheduler=d.DDPMScheduler(variance_type="learned_range", thresholding=True, sample_max_value=1.0),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )


CASCADE = {"output_type": "pt", "height": 128, "width": 128, "prior_num_inference_steps": 2}


@family("stable-cascade", "StableCascadeCombinedPipeline", **CASCADE)
def _cascade() -> Any:
    from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel

    def unet(**more: Any) -> Any:
        layers = {
            "down_num_layers_per_block": (1, 1),
            "up_num_layers_per_block": (1, 1),
            "block_out_channels": (16, 16),
        }
        pooled = {"clip_text_pooled_in_channels": HIDDEN}
        return d.StableCascadeUNet(conditioning_dim=16, num_attention_heads=(2, 2), **layers, **pooled, **more)

    return d.StableCascadeCombinedPipeline(
        tokenizer=parts.clip_tokenizer(),
        text_encoder=parts.clip(projection=True),
        decoder=unet(in_channels=4, out_channels=4, effnet_in_channels=16),
        scheduler=d.DDPMWuerstchenScheduler(),
        vqgan=PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=2),
        prior_prior=unet(clip_image_in_channels=768, clip_text_in_channels=HIDDEN, switch_level=(False,)),
        prior_text_encoder=parts.clip(projection=True),
        prior_tokenizer=parts.clip_tokenizer(),
        prior_scheduler=d.DDPMWuerstchenScheduler(),
        prior_feature_extractor=None,
        prior_image_encoder=None,
    )


@family("stable-cascade-decoder", "StableCascadeCombinedPipeline", **CASCADE, unguided=True)
def _cascade_decoder() -> Any:
    return PipelinePart(_cascade(), "decoder")


@family("stable-cascade-prior", "StableCascadeCombinedPipeline", **CASCADE)
def _cascade_prior() -> Any:
    return PipelinePart(_cascade(), "prior_prior")
