"""The embedded demo models: small text-to-image pipelines that draw 12 objects in 3 emoji styles."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .concepts import (
    MODELS,
    OBJECTS,
    RARE_OBJECT,
    STYLES,
    SUPPRESSED_OBJECT,
    VARIANTS,
    caption,
    generation,
    known,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffusers import DiffusionPipeline
    from PIL import Image

    from .emoji_scorer import EmojiScorer

__all__ = [
    "MODELS",
    "OBJECTS",
    "RARE_OBJECT",
    "STYLES",
    "SUPPRESSED_OBJECT",
    "VARIANTS",
    "caption",
    "folder",
    "generation",
    "load",
    "name_of",
    "opened",
    "pictures",
    "prompts",
    "scorer",
]

# Whose folder has the classifier and the pictures: both serve every model.
_FIRST = "emoji"


def folder(name: str = "emoji") -> Path:
    """Where the files of a model lie; of a variant, those of the model that it was made of.

    Raises:
        ValueError: There is no model of that name.
    """
    known(name)
    return Path(__file__).parent / VARIANTS.get(name, name)


def load(name: str = "emoji", **kwargs: Any) -> DiffusionPipeline:
    """Load a model as an ordinary pipeline, in float32 unless ``dtype`` says otherwise.

    "emoji" is a StableDiffusionPipeline, "emoji-flow" a StableDiffusion3Pipeline. Of ``VARIANTS`` some weights differ.

    Args:
        name: Of a model or a variant.
        **kwargs: Go to ``DiffusionPipeline.from_pretrained`` (``dtype`` is ``torch_dtype`` before diffusers 0.42).

    Raises:
        ValueError: There is no model of that name.
    """
    import diffusers
    import torch

    from ..diffusion.dtypes import dtype_keyword
    from ..diffusion.stored_models import absent_components

    dtype = {} if {"dtype", "torch_dtype"} & kwargs.keys() else dtype_keyword(torch.float32)
    absent = absent_components(folder(name) / "model_index.json")
    settings = {**dtype, **absent, "local_files_only": True, "use_safetensors": True, **kwargs}
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder(name), **settings)
    pipeline.set_progress_bar_config(leave=False)
    if name in VARIANTS:
        from ..edits.files.denoiser_weights import put_denoiser_weights

        put_denoiser_weights(pipeline, Path(__file__).parent / "variants" / f"{name}.safetensors")
    return pipeline


def name_of(pipeline: Any) -> str | None:
    """Return the zoo's name of a pipeline that ``load`` or ``load_pipeline`` made; None for any other.

    Of a variant it is that of the model that it was made of, whose captions and pictures it shares.
    """
    source = str((getattr(pipeline, "config", None) or {}).get("_name_or_path"))
    return next((name for name in MODELS if source in (str(folder(name)), f"zoo:{name}")), None)


def scorer(name: str = "emoji") -> EmojiScorer:
    """The classifier that tells objects and styles in a model's pictures, the same for every model."""
    from .emoji_scorer import EmojiScorer

    known(name)
    return EmojiScorer.from_folder(folder(_FIRST) / "classifier")


def prompts(concept: str) -> list[str]:
    """The prompts that express a concept: an object in every style, or every object in a style.

    Raises ValueError with the nearest names for an unknown concept.
    """
    if concept in OBJECTS:
        return [caption(concept, style) for style in STYLES]
    if concept in STYLES:
        return [caption(obj, concept) for obj in OBJECTS]
    concepts = (*OBJECTS, *STYLES)
    near = difflib.get_close_matches(concept, concepts, n=3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ValueError(f"unknown concept {concept!r}{hint} The models know: {', '.join(concepts)}")


def opened(files: Sequence[Path]) -> list[Image.Image]:
    """Read pictures from files, as RGB."""
    from PIL import Image

    return [Image.open(file).convert("RGB") for file in files]


def pictures(concept: str, name: str = "emoji") -> list[tuple[Path, str]]:
    """Real pictures of an object, as (file, caption), the same for every model. Raises ValueError for an unknown
    object.
    """
    known(name)
    if concept not in OBJECTS:
        raise ValueError(f"there are no pictures of {concept!r}; there are of: {', '.join(OBJECTS)}")
    files = sorted((folder(_FIRST) / "pictures" / concept).glob("*.png"))
    return [(file, caption(concept, file.stem.split("-")[0])) for file in files]
