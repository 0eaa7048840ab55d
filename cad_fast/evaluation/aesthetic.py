"""How pleasing pictures are, by the predictors that LAION trained on CLIP's features."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .clip_scorer import ClipModel
from .weights import read_weights

PUBLISHED = (
    "LAION's aesthetic predictor for the CLIP model: sa_0_4_vit_l_14_linear.pth (version 1), or "
    "sac+logos+ava1-l14-linearMSE.pth (version 2)"
)


class AestheticMeasure:
    """The predicted rating of each picture, about 1 to 10: a measure.

    A predictor is linear in the unit vector that CLIP gives a picture: one layer in version 1, several without
    activations between them in version 2.
    """

    def __init__(
        self,
        model_name_or_path: str | Path,
        head: str | Path,
        device: str | torch.device = "cpu",
        batch_size: int = 32,
    ) -> None:
        """``model_name_or_path``: the CLIP model that the head was trained on; ``head``: a safetensors file.

        Raises FileNotFoundError saying what to download and convert, ValueError for a head of other layers or for
        another CLIP model, and what ``ClipModel`` raises.
        """
        self._layers = _layers(head)
        self._clip = ClipModel(model_name_or_path, device, batch_size)
        self.name = f"aesthetic predictor {Path(head).stem} on CLIP {self._clip.title}"
        width = int(self._clip.model.config.projection_dim)
        if self._layers[0][0].shape[1] != width:
            expected = f"{self._layers[0][0].shape[1]} features"
            raise ValueError(f"{head} is for a CLIP model with {expected}, {self._clip.title} has {width}")

    @torch.no_grad()
    def measure(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, Tensor]:
        """Float32 [N] of "aesthetic"."""
        x = self._clip.images(images).cpu()
        for weight, bias in self._layers:
            x = torch.nn.functional.linear(x, weight, bias)
        return {"aesthetic": x[:, 0]}


def _layers(head: str | Path) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of each layer, in the order of the numbers in their names."""
    state = {name: tensor.float() for name, tensor in read_weights(head, PUBLISHED).items()}
    names = sorted((name for name in state if name.endswith("weight")), key=lambda name: _number(name))
    pairs = [(state[name], state.get(name.removesuffix("weight") + "bias")) for name in names]
    layers = [(weight, bias) for weight, bias in pairs if bias is not None]
    width = layers[0][0].shape[-1] if layers else 0
    for weight, bias in layers:
        if weight.ndim != 2 or bias.shape != weight.shape[:1] or weight.shape[1] != width:
            layers = []
            break
        width = len(weight)
    if not layers or width != 1 or 2 * len(layers) != len(state):
        raise ValueError(f"{head} is not a stack of linear layers that ends in one number, expected {PUBLISHED}")
    return layers


def _number(name: str) -> int:
    digits = re.search(r"\d+", name)
    return int(digits[0]) if digits else 0
