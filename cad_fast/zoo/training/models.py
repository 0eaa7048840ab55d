"""The parts of the demo pipeline, as diffusers and transformers models built from configs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ...files import write_json, write_text
from ..concepts import OBJECTS, STYLES, caption

PROMPT_LENGTH = 16
HIDDEN = 64
WORDS = ("emoji", "picture", "of", "an", "the", "photo", "drawing", "with", "and", "on", "white", "background")


def make_vae() -> AutoencoderKL:
    """Factor 2, four latent channels: 32x32 pixels become 16x16 latents."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
        mid_block_add_attention=False,
    )


def make_tokenizer(folder: Path, length: int = PROMPT_LENGTH) -> CLIPTokenizer:
    """A CLIP tokenizer in which each word of the captions is one token, and other words are spelled out.

    Reads vocab.json and merges.txt in ``folder``, or writes them if they are not there.
    Raises ValueError when the merges do not join a word.
    """
    words = sorted({word for obj in OBJECTS for style in STYLES for word in caption(obj, style).split()} | set(WORDS))
    if not (folder / "vocab.json").exists():
        tokens, merges = _spell(words)
        write_json(folder / "vocab.json", {token: number for number, token in enumerate(tokens)})
        write_text(folder / "merges.txt", "#version: 0.2\n" + "\n".join(merges) + "\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=length, pad_token="<|endoftext|>")
    for word in words:
        if len(tokenizer.tokenize(word)) != 1:
            raise ValueError(f"the tokenizer splits {word!r} into {tokenizer.tokenize(word)}")
    return tokenizer


def _spell(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The vocabulary, and the byte-pair merges that build each word from its letters, left to right."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.-'"
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[str] = []
    # Merges apply in their order: the long words come first, or "emoji" would take "twemoji" apart.
    for word in sorted(words, key=len, reverse=True):
        symbols = [*word[:-1], f"{word[-1]}</w>"]
        left = symbols[0]
        for right in symbols[1:]:
            merge = f"{left} {right}"
            left += right
            if merge not in merges:
                merges.append(merge)
            if left not in tokens:
                tokens.append(left)
    return tokens, merges


def text_config(tokenizer: CLIPTokenizer, length: int) -> CLIPTextConfig:
    """Two layers of width 64 over the tokenizer's words, for texts of so many tokens."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=length,
        projection_dim=HIDDEN,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(text_config(tokenizer, PROMPT_LENGTH))


def make_unet(
    channels: tuple[int, int, int] = (24, 48, 96), layers: int = 1, norm_groups: int = 8
) -> UNet2DConditionModel:
    """16x16 latents, three levels, cross-attention at 8x8 and 4x4."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=channels,
        layers_per_block=layers,
        norm_num_groups=norm_groups,
        cross_attention_dim=HIDDEN,
        attention_head_dim=4,
    )


def make_scheduler(**changes: Any) -> DDIMScheduler:
    """Stable Diffusion's noise schedule, epsilon prediction, deterministic sampling, but for ``changes``."""
    settings: dict[str, Any] = {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": "epsilon",
    }
    return DDIMScheduler(**settings | changes)


def make_pipeline(
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
    scheduler: DDIMScheduler | None = None,
) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler or make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
