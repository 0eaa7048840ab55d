"""``python -m bench.other_models NAME --data node_modules --work DIR``: a model that no recipe was tuned on.

Two models draw what the embedded one draws, and nothing was ever chosen on them. One has another seed and width.
The other has another seed, noise schedule, prediction and other captions. Both use the embedded autoencoder, so that
the embedded classifier judges their pictures. A second run goes on where the first stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

import cad_fast
from cad_fast.evaluation.prompts import LabelledPrompt, PromptSet
from cad_fast.zoo import OBJECTS, RARE_OBJECT, STYLES, caption
from cad_fast.zoo.training.__main__ import VIEWS
from cad_fast.zoo.training.data import EmojiSet, load_pictures
from cad_fast.zoo.training.models import make_pipeline, make_scheduler, make_tokenizer
from cad_fast.zoo.training.stage import Recipe
from cad_fast.zoo.training.train import Drawing, encode, train_diffusion


def other_caption(obj: str | None = None, style: str | None = None) -> str:
    """Return captions in another form: "twemoji emoji, the cat on white background"."""
    words = [f"{style} emoji" if style else "", f"the {obj} on white background" if obj else ""]
    return ", ".join(filter(None, words))


MODELS = {
    "other-size": Drawing(
        channels=(32, 64, 96),
        seed=11,
        recipe=Recipe(steps=3000, batch=48, lr=1.5e-3),
        shown_less={RARE_OBJECT: 0.01},
    ),
    "other-schedule": Drawing(
        schedule={
            "beta_schedule": "linear",
            "beta_start": 0.0001,
            "beta_end": 0.02,
            "prediction_type": "v_prediction",
        },
        say=other_caption,
        seed=23,
        recipe=Recipe(steps=3000, batch=48, lr=1.5e-3),
        shown_less={RARE_OBJECT: 0.01},
    ),
}


def train(name: str, data: EmojiSet, work: Path) -> Path:
    """Train one of ``MODELS`` and save it as a pipeline; returns its folder."""
    drawing = MODELS[name]
    vae = cad_fast.zoo.load().vae
    model = train_diffusion(data, encode(vae, data.images) * vae.config.scaling_factor, work, drawing)
    tokenizer = make_tokenizer(work / "tokenizer")
    unet = model.unet.to(memory_format=torch.contiguous_format)
    folder = work / "pipeline"
    make_pipeline(vae, model.text_encoder, tokenizer, unet, make_scheduler(**drawing.schedule)).save_pretrained(folder)
    return folder


def prompts_of(name: str, concept: str) -> list[str]:
    """Prompts for an object in every style, or every object in a style, in the captions of a model."""
    say: Any = MODELS[name].say if name in MODELS else caption
    if concept in STYLES:
        return [say(obj, concept) for obj in OBJECTS]
    return [say(concept, style) for style in STYLES]


def prompt_set(name: str) -> PromptSet:
    """Return all objects in all styles, on the axes "object" and "style"."""
    say: Any = MODELS[name].say if name in MODELS else caption
    return PromptSet(
        LabelledPrompt(say(obj, style), {"object": obj, "style": style}) for obj in OBJECTS for style in STYLES
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.other_models", description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--data", type=Path, required=True, help="node_modules with the three emoji packages")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints; a second run continues there")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    data = EmojiSet.build(load_pictures(args.data), views=VIEWS, seed=0)
    print(train(args.model, data, args.work))


if __name__ == "__main__":
    main()
