"""Write the trained parts as an ordinary diffusers folder in fp16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from PIL import Image
from safetensors.torch import save_file

from ...files import read_json, write_json, write_whole
from ..classifier import EmojiClassifier
from ..concepts import OBJECTS, STYLES
from .data import EmojiSet, to_float
from .flow import TextToVelocity
from .flow_models import PROMPT_LENGTH, make_flow_pipeline
from .models import make_pipeline, make_tokenizer
from .train import TextToLatent

PICTURES = 3


@torch.no_grad()
def held_out_accuracy(classifier: EmojiClassifier, data: EmojiSet) -> dict[str, float]:
    """Object and style accuracy of the classifier over the views of the emoji it has not seen."""
    images, objects, styles = data.images[data.held_out], data.objects[data.held_out], data.styles[data.held_out]
    object_logits, style_logits = classifier(to_float(images))
    return {
        "object": round((object_logits.argmax(-1) == objects).float().mean().item(), 4),
        "style": round((style_logits.argmax(-1) == styles).float().mean().item(), 4),
    }


def _save_pictures(folder: Path, data: EmojiSet) -> None:
    """Three pictures of each object and style, as the real images of the denoising objective."""
    for obj, object_name in enumerate(OBJECTS):
        (folder / object_name).mkdir(parents=True, exist_ok=True)
        for style, style_name in enumerate(STYLES):
            rows = ((data.objects == obj) & (data.styles == style)).nonzero().flatten()
            for number, row in enumerate(rows[:: max(1, len(rows) // PICTURES)][:PICTURES].tolist()):
                pixels = data.images[row].permute(1, 2, 0).numpy()
                Image.fromarray(pixels).save(folder / object_name / f"{style_name}-{number}.png", optimize=True)


def _save_pipeline(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Save in fp16. Configs do not say where parts were loaded from: that is a path of this machine."""
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    for path in folder.rglob("*.json"):
        config = read_json(path)
        if isinstance(config, dict) and config.pop("_name_or_path", None) is not None:
            write_json(path, config)


def save_package(
    folder: Path,
    tokenizer_folder: Path,
    vae: AutoencoderKL,
    model: TextToLatent,
    classifier: EmojiClassifier,
    data: EmojiSet,
    measured: dict[str, Any],
) -> None:
    """Save pipeline, classifier and what was ``measured`` about them into ``folder``."""
    tokenizer = make_tokenizer(tokenizer_folder)
    unet = model.unet.to(memory_format=torch.contiguous_format)
    pipeline = make_pipeline(vae, model.text_encoder, tokenizer, unet)
    _save_pipeline(pipeline, folder)
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in classifier.state_dict().items()
    }
    (folder / "classifier").mkdir(exist_ok=True)
    write_whole(folder / "classifier" / "model.safetensors", lambda part: save_file(state, part))
    config = {"objects": OBJECTS, "styles": STYLES, "held_out_accuracy": measured["held_out_accuracy"]}
    write_json(folder / "classifier" / "config.json", config)
    _save_pictures(folder / "pictures", data)
    write_json(folder / "training.json", measured)
    print(f"{folder}: {_megabytes(folder):.2f} MB, {measured}")


def save_flow_package(folder: Path, tokenizer_folder: Path, vae: AutoencoderKL, model: TextToVelocity) -> None:
    """Save the flow pipeline into ``folder``. ``vae`` scales the latents to unit deviation, without a shift."""
    vae.register_to_config(shift_factor=0.0)
    tokenizer = make_tokenizer(tokenizer_folder, PROMPT_LENGTH)
    pipeline = make_flow_pipeline(vae, model.text_encoder, model.text_encoder_2, tokenizer, model.transformer)
    _save_pipeline(pipeline, folder)
    print(f"{folder}: {_megabytes(folder):.2f} MB")


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
