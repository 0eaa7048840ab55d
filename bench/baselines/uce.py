"""UCE: edit the keys and values of the cross-attention in closed form (arXiv 2308.14761)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from cad_fast import zoo


def closed_form(
    weight: Tensor, erased: Tensor, guides: Tensor, preserved: Tensor, scales: tuple[float, float, float]
) -> Tensor:
    """The weight [out, in] that maps erased texts to where ``weight`` maps their guides, and others as before.

    The minimum over W of a * sum |W e - weight g|^2 + b * sum |W p - weight p|^2 + lamb * |W - weight|^2 (the paper's
    equation 7), for rows e of ``erased`` [n, in], g of ``guides`` [n, in] and p of ``preserved`` [m, in], and a, b and
    lamb of ``scales``.
    """
    erase_scale, keep_scale, lamb = scales
    wide = weight.double()
    e, g, p = erased.double(), guides.double(), preserved.double()
    identity = torch.eye(weight.shape[1], dtype=torch.float64)
    left = wide @ (erase_scale * g.T @ e + keep_scale * p.T @ p + lamb * identity)
    right = erase_scale * e.T @ e + keep_scale * p.T @ p + lamb * identity
    return torch.linalg.solve(right, left.T).T.to(weight.dtype)


def text_states(pipeline: Any, prompt: str, word: str | None) -> Tensor:
    """The text encoder's outputs [tokens, in] from the last token of ``word`` on; of all after the first without one.

    The first token stands before any word and is the same for every prompt. Raises ValueError when the prompt has no
    such word.
    """
    with torch.no_grad():
        states = pipeline.encode_prompt(prompt, pipeline.device, 1, False)[0][0]
    if word is None:
        return states[1:]
    tokens = pipeline.tokenizer(prompt)["input_ids"]
    ids = pipeline.tokenizer(word, add_special_tokens=False)["input_ids"]
    if not ids or ids[-1] not in tokens:
        raise ValueError(f"the prompt {prompt!r} has no word {word!r}")
    return states[tokens.index(ids[-1]) :]


@dataclass(frozen=True)
class Uce:
    """UCE with the settings of the script that was first published with it.

    The paper's own: keys and values of the cross-attention, the empty prompt as the guide, the concept's weight 1 and
    that of the others, which are preserved, 0.1, lambda 0.1. Every token from the concept's last one on is edited,
    since the text encoder carries the concept on to those behind it, and a guide's tokens are paired with them in
    order.
    Scaled: the prompts are the embedded model's captions (without a style and with each) in place of "image of ...",
    "photo of ..." and the like, which its tokenizer does not know.

    Attributes:
        erase_scale, keep_scale: weights of the concepts to erase and to keep.
        lamb: weight of the distance from the intact weights.
    """

    name: ClassVar[str] = "uce"
    erase_scale: float = 1.0
    keep_scale: float = 0.1
    lamb: float = 0.1

    def weights(self, pipeline: Any, concept: str) -> dict[str, Tensor]:
        """See ``Baseline.weights``."""
        erased, guides = [], []
        for prompt, style in _captions(concept):
            states = text_states(pipeline, prompt, concept)
            guide = text_states(pipeline, zoo.caption(None, style), None)
            erased.append(states)
            guides.append(guide[: len(states)])
        others = [other for other in zoo.OBJECTS if other != concept]
        preserved = [text_states(pipeline, prompt, other) for other in others for prompt, _ in _captions(other)]
        rows = torch.cat(erased), torch.cat(guides), torch.cat(preserved)
        scales = (self.erase_scale, self.keep_scale, self.lamb)
        return {
            f"{name}.weight": closed_form(module.weight.detach(), *rows, scales)
            for name, module in pipeline.unet.named_modules()
            if name.endswith(("attn2.to_k", "attn2.to_v"))
        }


def _captions(concept: str) -> list[tuple[str, str | None]]:
    """The captions of an object, each with its style."""
    return [(zoo.caption(concept, style), style) for style in (None, *zoo.STYLES)]
