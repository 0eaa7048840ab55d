"""Write the trained parts as an ordinary diffusers folder in fp16."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file

from ..classifier import EmojiClassifier
from ..concepts import OBJECTS, STYLES
from .data import EmojiSet, to_float
from .models import PROMPT_LENGTH, make_pipeline, make_tokenizer
from .train import TextToLatent

PICTURES = 3


@torch.no_grad()
def held_out_accuracy(classifier: EmojiClassifier, data: EmojiSet) -> tuple[float, float]:
    """Object and style accuracy of the classifier over the views of the emoji it has not seen."""
    images, objects, styles = data.images[data.held_out], data.objects[data.held_out], data.styles[data.held_out]
    object_logits, style_logits = classifier(to_float(images))
    return (
        (object_logits.argmax(-1) == objects).float().mean().item(),
        (style_logits.argmax(-1) == styles).float().mean().item(),
    )


def _save_pictures(folder: Path, data: EmojiSet) -> None:
    """Three pictures of each object and style, as the real images of the denoising objective."""
    for obj, object_name in enumerate(OBJECTS):
        (folder / object_name).mkdir(parents=True, exist_ok=True)
        for style, style_name in enumerate(STYLES):
            rows = ((data.objects == obj) & (data.styles == style)).nonzero().flatten()
            for number, row in enumerate(rows[:: max(1, len(rows) // PICTURES)][:PICTURES].tolist()):
                pixels = data.images[row].permute(1, 2, 0).numpy()
                Image.fromarray(pixels).save(folder / object_name / f"{style_name}-{number}.png", optimize=True)


def save_package(
    folder: Path, vae: AutoencoderKL, model: TextToLatent, classifier: EmojiClassifier, data: EmojiSet, psnr: float
) -> None:
    """Save pipeline, classifier and what was measured about them into ``folder``."""
    tokenizer = make_tokenizer(folder / "tokenizer")
    unet = model.unet.to(memory_format=torch.contiguous_format)
    pipeline = make_pipeline(vae, model.text_encoder, tokenizer, unet)
    accuracy = held_out_accuracy(classifier.float(), data)
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in classifier.state_dict().items()
    }
    (folder / "classifier").mkdir(exist_ok=True)
    save_file(state, folder / "classifier" / "model.safetensors")
    config = {"objects": OBJECTS, "styles": STYLES, "held_out_accuracy": {"object": accuracy[0], "style": accuracy[1]}}
    (folder / "classifier" / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    _save_pictures(folder / "pictures", data)
    facts = {"vae_psnr_db": psnr, "prompt_length": PROMPT_LENGTH}
    (folder / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.2f} MB; on held-out emoji: object {accuracy[0]:.3f}, style {accuracy[1]:.3f}")
