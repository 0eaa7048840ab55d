"""The prompts of the demo models, with what they ask for."""

from __future__ import annotations

from ..evaluation.prompts import LabelledPrompt, PromptSet
from .concepts import OBJECTS, STYLES, caption


def emoji_prompts() -> PromptSet:
    """The 36 captions of the demo models: 12 objects in 3 styles, on the axes "object" and "style"."""
    return PromptSet(
        LabelledPrompt(caption(obj, style), {"object": obj, "style": style}) for obj in OBJECTS for style in STYLES
    )
