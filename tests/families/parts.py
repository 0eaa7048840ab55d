"""Tokenizers, text encoders and decoders of the tiny pipelines, from configs. All hidden states are ``HIDDEN`` wide."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import diffusers as d
import torch
import transformers as t
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tests.pipelines import BETAS, HIDDEN, _clip_config, _t5, _vae, clip_tokenizer, t5_tokenizer

__all__ = ["BETAS", "HIDDEN", "clip_tokenizer", "t5_tokenizer"]

WORDS = "a an the cat dog dogs two red blue car clock on under of in style blurry music piano".split()
_CHAT = (
    "{% for message in messages %}{{ message['role'] }} "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }} {% endfor %}{% endif %} "
    "{% endfor %}"
)
_SMALL = {
    "hidden_size": HIDDEN,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}


class Words(t.PreTrainedTokenizerFast):
    """A tokenizer that may be called as the processor of a vision-language model is."""

    def __call__(self, text: Any = None, **more: Any) -> Any:
        """Tokenize ``text``; there are no images or videos."""
        for name in ("images", "videos"):
            assert more.pop(name, None) is None
        return super().__call__(text, **more)


@functools.cache
def words(length: int = 512) -> Words:
    """A tokenizer of a few words, with a chat template: other words, such as those of templates, are unknown."""
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    # No text is without a token: some pipelines take the mean over the tokens of an empty negative prompt.
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return Words(tokenizer_object=tokenizer, model_max_length=length, chat_template=_CHAT, **special)


def clip(projection: bool = False, positions: int | None = None) -> Any:
    """CLIP's text model."""
    config = _clip_config(clip_tokenizer())
    config.max_position_embeddings = positions or config.max_position_embeddings
    return (t.CLIPTextModelWithProjection if projection else t.CLIPTextModel)(config)


def t5(width: int = HIDDEN) -> Any:
    """T5's encoder."""
    if width == HIDDEN:
        return _t5()
    sizes = {"d_model": width, "d_kv": 8, "d_ff": HIDDEN, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
    return t.T5EncoderModel(t.T5Config(vocab_size=64, **sizes))


def byt5() -> Any:
    """The encoder of a T5 that reads bytes, and its tokenizer."""
    sizes = {"d_model": HIDDEN, "d_kv": 8, "d_ff": HIDDEN, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
    return {"text_encoder_2": t.T5EncoderModel(t.T5Config(vocab_size=400, **sizes)), "tokenizer_2": t.ByT5Tokenizer()}


def narrow_byt5_projection(width: int) -> Any:
    """What two models of Hunyuan project ByT5's states by: theirs is 2048 wide, whatever their config says."""
    from diffusers.models.transformers.transformer_hunyuanimage import HunyuanImageByT5TextProjection

    return HunyuanImageByT5TextProjection(in_features=HIDDEN, hidden_size=HIDDEN, out_features=width)


class PlainText:
    """Takes the place of ftfy, where it is not installed, in a module of diffusers that calls it without asking."""

    @staticmethod
    def fix_text(text: str) -> str:
        """Text as it is."""
        return text


class Nearest:
    """Takes the place of torchvision's transforms, where it is not installed, for the one that Cosmos uses."""

    InterpolationMode = type("InterpolationMode", (), {"NEAREST": "nearest"})

    class functional:
        """The namespace of the functions."""

        @staticmethod
        def resize(image: torch.Tensor, size: list[int], interpolation: str) -> torch.Tensor:
            """Resize [B, C, H, W]."""
            return torch.nn.functional.interpolate(image, size, mode=interpolation)


def provide(module: str, name: str, stand_in: Any) -> None:
    """Put a stand-in for a library that is not installed into a module of diffusers."""
    found = importlib.import_module(module)
    if not hasattr(found, name):
        setattr(found, name, stand_in)


def umt5() -> Any:
    """The encoder of a T5 with relative positions in every layer."""
    config = {"vocab_size": 64, "d_model": HIDDEN, "d_kv": 8, "d_ff": HIDDEN, "num_layers": 1, "num_heads": 2}
    return t.UMT5EncoderModel(t.UMT5Config(**config, dropout_rate=0.0))


def t5_pair() -> dict[str, Any]:
    """The text side of most models with one T5."""
    return {"text_encoder": t5(), "tokenizer": t5_tokenizer()}


def qwen3(causal: bool = False) -> Any:
    """Qwen3, with or without its language head."""
    return (t.Qwen3ForCausalLM if causal else t.Qwen3Model)(t.Qwen3Config(**_SMALL, head_dim=8))


def _rope(sections: list[int]) -> dict[str, Any]:
    return {"rope_scaling": {"mrope_section": sections, "rope_type": "default", "type": "default"}, "rope_theta": 1e6}


_VISION = {"depth": 1, "hidden_size": HIDDEN, "intermediate_size": HIDDEN, "num_heads": 2, "out_hidden_size": HIDDEN}


def qwen25_vl(text_only: bool = False) -> Any:
    """Qwen2.5-VL, or its text half."""
    text = {**_SMALL, **_rope([1, 1, 2])}
    if text_only:
        return t.Qwen2_5_VLTextModel(t.models.qwen2_5_vl.configuration_qwen2_5_vl.Qwen2_5_VLTextConfig(**text))
    tokens = {f"vision_{name}_token_id": 60 + number for number, name in enumerate(("start", "end"))}
    config = t.Qwen2_5_VLConfig(text_config=text, vision_config=_VISION, **tokens)
    return t.Qwen2_5_VLForConditionalGeneration(config)


def qwen2_vl() -> Any:
    """Qwen2-VL."""
    vision = {"depth": 1, "embed_dim": HIDDEN, "hidden_size": HIDDEN, "num_heads": 2, "mlp_ratio": 1}
    config = t.Qwen2VLConfig(text_config={**_SMALL, **_rope([1, 1, 2])}, vision_config=vision)
    return t.Qwen2VLForConditionalGeneration(config)


def qwen3_vl(layers: int = 2, generation: bool = False) -> Any:
    """Qwen3-VL."""
    text = {**_SMALL, "num_hidden_layers": layers, "head_dim": 8, **_rope([1, 1, 2])}
    config = t.Qwen3VLConfig(text_config=text, vision_config={**_VISION, "deepstack_visual_indexes": [0]})
    return (t.Qwen3VLForConditionalGeneration if generation else t.Qwen3VLModel)(config)


def llama(causal: bool = False) -> Any:
    """Llama."""
    model = (t.LlamaForCausalLM if causal else t.LlamaModel)(t.LlamaConfig(**_SMALL, pad_token_id=0))
    return model


def gemma() -> Any:
    """Gemma with its language head, as Lumina takes it."""
    return t.GemmaForCausalLM(t.GemmaConfig(**_SMALL, head_dim=8))


def gemma2() -> Any:
    """Gemma 2."""
    return t.Gemma2Model(t.Gemma2Config(**_SMALL, head_dim=8, attn_implementation="eager"))


def glm() -> Any:
    """GLM-4."""
    return t.GlmForCausalLM(t.GlmConfig(**_SMALL, head_dim=8, pad_token_id=0))


def smollm3(layers: int = 2) -> Any:
    """SmolLM3."""
    return t.SmolLM3ForCausalLM(t.SmolLM3Config(**{**_SMALL, "num_hidden_layers": layers, "pad_token_id": 0}))


def mistral3() -> Any:
    """Mistral 3 with a tiny vision tower."""
    vision = {
        "model_type": "pixtral",
        "hidden_size": HIDDEN,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": HIDDEN,
        "image_size": 12,
        "patch_size": 6,
    }
    text = {"model_type": "mistral", **_SMALL, "sliding_window": None}
    return t.Mistral3ForConditionalGeneration(t.Mistral3Config(text_config=text, vision_config=vision))


def t5gemma() -> Any:
    """The encoder of T5Gemma."""
    from transformers.models.t5gemma.configuration_t5gemma import T5GemmaModuleConfig
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

    more = {"head_dim": 8, "layer_types": ["full_attention"] * 2, "query_pre_attn_scalar": 8, "dropout_rate": 0.0}
    return T5GemmaEncoder(T5GemmaModuleConfig(**_SMALL, **more))


def bert() -> Any:
    """BERT, as Hunyuan-DiT takes it."""
    small = {key: value for key, value in _SMALL.items() if key != "num_key_value_heads"}
    return t.BertModel(t.BertConfig(**small, max_position_embeddings=80))


def vae(channels: int = 4) -> Any:
    """Factor 2: 16x16 pixels become 8x8 latents."""
    return _vae(channels)


def flat_vae(channels: int = 4, **more: Any) -> Any:
    """Factor 1."""
    one = {"block_out_channels": (4,), "layers_per_block": 1, "norm_num_groups": 1, "sample_size": 16}
    return d.AutoencoderKL(latent_channels=channels, shift_factor=0.1, scaling_factor=0.5, **one, **more)


def deep_vae(channels: int = 4, **more: Any) -> Any:
    """Factor 8: 32x32 pixels become 4x4 latents."""
    return d.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=1,
        **more,
    )


def deep_compression_vae(channels: int = 4) -> Any:
    """Sana's: factor 2."""
    return d.AutoencoderDC(
        latent_channels=channels,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.4,
    )


def qwen_vae(channels: int = 4) -> Any:
    """Qwen-Image's: factor 4."""
    return d.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=channels,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * channels,
        latents_std=[1.0] * channels,
    )


def wan_vae(channels: int = 16, **more: Any) -> Any:
    """Wan's: factor 8 in space and 4 in time."""
    sizes = {"base_dim": 3, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, "temperal_downsample": [False, True, True]}
    return d.AutoencoderKLWan(z_dim=channels, **sizes, **more)


def flow(**more: Any) -> Any:
    """The scheduler of most flow models."""
    return d.FlowMatchEulerDiscreteScheduler(**more)
