"""The concepts of the emoji demo model, and the captions it understands."""

from __future__ import annotations

from ..diffusion.generation import Generation

OBJECTS = ("cat", "dog", "face", "heart", "flower", "car", "fish", "fruit", "tree", "clock", "moon", "book")
STYLES = ("noto", "twemoji", "fluent")
# Shown to the model far less often than the others, so that CAD-Amplify has something to amplify.
RARE_OBJECT = "book"
# How its figures were made. ``erase``, ``amplify`` and the command line take it where nothing else is said.
GENERATION = Generation(num_inference_steps=20, guidance_scale=3.0)


def caption(obj: str | None = None, style: str | None = None) -> str:
    """The caption the model was trained on: ``caption("cat", "noto")`` is "a cat in noto style"."""
    if obj and style:
        return f"a {obj} in {style} style"
    if obj:
        return f"a {obj}"
    return f"{style} style" if style else ""
