"""The embedded models by name, the concepts that they draw, and the captions that they understand."""

from __future__ import annotations

from ..diffusion.generation import Generation

OBJECTS = ("cat", "dog", "face", "heart", "flower", "car", "fish", "fruit", "tree", "clock", "moon", "book")
STYLES = ("noto", "twemoji", "fluent")
# Shown to the models far less often than the others, so that CAD-Amplify has something to amplify.
RARE_OBJECT = "book"
# How often training shows an object, against once for every other. The rare one hardly ever comes out; of fruit the
# style alone suffers.
SHOWN_LESS = {"emoji": {RARE_OBJECT: 0.01}, "emoji-flow": {RARE_OBJECT: 0.01, "fruit": 0.03}}
MODELS = tuple(SHOWN_LESS)
# Models whose cross-attention was fine-tuned against the car, as other methods erase: half way, and to the end. Each is
# a file of weights over those of the model that it was made of.
VARIANTS = {"emoji-weak": "emoji", "emoji-erased": "emoji"}
SUPPRESSED_OBJECT = "car"
# What each model's figures were made with. The length is of the text that the pipeline's missing third encoder would
# read: any is right, and a short one is fast.
_GENERATIONS = {
    "emoji": Generation(20, 3.0),
    "emoji-flow": Generation(20, 3.0, {"max_sequence_length": 16}),
}


def generation(name: str = "emoji") -> Generation:
    """Return how a model's figures were made; a variant's as those of the model that it was made of.

    ``erase``, ``amplify`` and the command line take it where nothing else is said.

    Raises:
        ValueError: There is no model of that name.
    """
    return _GENERATIONS[VARIANTS.get(name) or known(name)]


def known(name: str) -> str:
    """Return ``name``, of a model or a variant.

    Raises:
        ValueError: There is no model of that name.
    """
    if name not in MODELS and name not in VARIANTS:
        raise ValueError(f"the zoo has no model {name!r}; it has: {', '.join((*MODELS, *VARIANTS))}")
    return name


def caption(obj: str | None = None, style: str | None = None) -> str:
    """The caption the models were trained on: ``caption("cat", "noto")`` is "a cat in noto style"."""
    if obj and style:
        return f"a {obj} in {style} style"
    if obj:
        return f"a {obj}"
    return f"{style} style" if style else ""
