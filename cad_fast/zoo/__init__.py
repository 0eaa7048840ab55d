"""The embedded demo model: a small text-to-image pipeline that draws 12 objects in 3 emoji styles."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .concepts import GENERATION, OBJECTS, RARE_OBJECT, STYLES, caption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffusers import StableDiffusionPipeline
    from PIL import Image

    from .emoji_scorer import EmojiScorer

__all__ = [
    "GENERATION",
    "OBJECTS",
    "RARE_OBJECT",
    "STYLES",
    "caption",
    "folder",
    "load",
    "name_of",
    "opened",
    "pictures",
    "prompts",
    "scorer",
]

MODELS = ("emoji",)


def folder(name: str = "emoji") -> Path:
    """Where the files of a model lie. Raises ValueError for an unknown name."""
    if name not in MODELS:
        raise ValueError(f"the zoo has no model {name!r}; it has: {', '.join(MODELS)}")
    return Path(__file__).parent / name


def load(name: str = "emoji", **kwargs: Any) -> StableDiffusionPipeline:
    """The model as an ordinary StableDiffusionPipeline, in float32 unless ``dtype`` says otherwise (before
    diffusers 0.42: ``torch_dtype``).

    ``kwargs`` go to ``StableDiffusionPipeline.from_pretrained``.
    """
    import diffusers
    import torch

    from ..diffusion.dtypes import dtype_keyword

    dtype = {} if {"dtype", "torch_dtype"} & kwargs.keys() else dtype_keyword(torch.float32)
    settings = {**dtype, "local_files_only": True, "use_safetensors": True, **kwargs}
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder(name), **settings)
    pipeline.set_progress_bar_config(leave=False)
    return pipeline


def name_of(pipeline: Any) -> str | None:
    """Return the zoo's name of a pipeline that ``load`` or ``load_pipeline`` made; None for any other."""
    source = str((getattr(pipeline, "config", None) or {}).get("_name_or_path"))
    return next((name for name in MODELS if source in (str(folder(name)), f"zoo:{name}")), None)


def scorer(name: str = "emoji") -> EmojiScorer:
    """The classifier that tells objects and styles in the model's pictures."""
    from .emoji_scorer import EmojiScorer

    return EmojiScorer.from_folder(folder(name) / "classifier")


def prompts(concept: str) -> list[str]:
    """The prompts that express a concept: an object in every style, or every object in a style.

    Raises ValueError with the nearest names for an unknown concept.
    """
    if concept in OBJECTS:
        return [caption(concept, style) for style in STYLES]
    if concept in STYLES:
        return [caption(obj, concept) for obj in OBJECTS]
    known = (*OBJECTS, *STYLES)
    near = difflib.get_close_matches(concept, known, n=3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ValueError(f"unknown concept {concept!r}{hint} The model knows: {', '.join(known)}")


def opened(files: Sequence[Path]) -> list[Image.Image]:
    """Read pictures from files, as RGB."""
    from PIL import Image

    return [Image.open(file).convert("RGB") for file in files]


def pictures(concept: str, name: str = "emoji") -> list[tuple[Path, str]]:
    """Real pictures of an object, as (file, caption). Raises ValueError for an unknown object."""
    if concept not in OBJECTS:
        raise ValueError(f"there are no pictures of {concept!r}; there are of: {', '.join(OBJECTS)}")
    files = sorted((folder(name) / "pictures" / concept).glob("*.png"))
    return [(file, caption(concept, file.stem.split("-")[0])) for file in files]
