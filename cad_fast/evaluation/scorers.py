"""What a picture shows: scorers give probabilities over the labels of one or more axes, such as object and style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor


@runtime_checkable
class Scorer(Protocol):
    """Says for each axis how probable each of its labels is.

    ``axes`` names the labels of each axis, in the order of the columns. Calling it with N images gives float32
    [N, n_labels] per axis. An optional attribute ``name`` is kept with the results.
    """

    axes: dict[str, tuple[str, ...]]

    def __call__(self, images: Sequence[Image.Image]) -> dict[str, Tensor]: ...


def checked_probabilities(scorer: Scorer, images: Sequence[Image.Image]) -> dict[str, Tensor]:
    """What ``scorer`` says of ``images``: float32 [N, n_labels] on the CPU per axis.

    Raises ValueError naming the axis when the scorer left one out, gave another shape, NaN, or a number outside 0..1.
    """
    raw = scorer(images)
    checked = {}
    for axis, labels in scorer.axes.items():
        if axis not in raw:
            raise ValueError(f"the scorer gave nothing for its axis {axis!r}")
        values = raw[axis].detach().float().cpu()
        if values.shape != (len(images), len(labels)):
            raise ValueError(
                f"the scorer gave shape {list(values.shape)} for axis {axis!r}, expected "
                f"[{len(images)}, {len(labels)}]: one row per image, one column per label"
            )
        bad = ~((values >= -1e-3) & (values <= 1 + 1e-3)).all(dim=1)
        if bad.any():
            row = int(bad.nonzero()[0, 0])
            raise ValueError(
                f"the scorer gave {values[row].tolist()} for axis {axis!r} of image {row} of {len(images)}; "
                "expected probabilities between 0 and 1"
            )
        checked[axis] = values.clamp(0, 1)
    return checked


def on_white(image: Image.Image) -> Image.Image:
    """``image`` as RGB, with transparency laid on white."""
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


class ClipScorer:
    """Zero-shot classification by CLIP: softmax over the similarities of an image to the texts of an axis.

    Source: Radford et al. 2021, arXiv 2103.00020.
    """

    def __init__(
        self,
        model_name_or_path: str | Path,
        axes: Mapping[str, Mapping[str, str]],
        device: str | torch.device = "cpu",
        batch_size: int = 32,
    ) -> None:
        """``axes``: per axis, the text that stands for each label, e.g. {"object": {"cat": "a photo of a cat"}}.

        Raises ValueError when an axis has no labels or the folder holds no CLIP weights, OSError when there is no such
        model. Only safetensors are read.
        """
        empty = [axis for axis, texts in axes.items() if not texts]
        if not axes or empty:
            raise ValueError(f"no labels to tell apart: {f'axis {empty[0]!r} is empty' if empty else 'no axes given'}")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

        path = Path(model_name_or_path)
        # The last part of a folder's path only: results are passed on, and paths of one machine mean nothing elsewhere.
        self.name = f"CLIP {path.name if path.is_dir() else model_name_or_path}"
        self.axes = {axis: tuple(texts) for axis, texts in axes.items()}
        self.batch_size = batch_size
        self.device = torch.device(device)
        try:
            # transformers declares a model alone, but gives a pair where the loading information is asked for.
            loaded: Any = CLIPModel.from_pretrained(model_name_or_path, use_safetensors=True, output_loading_info=True)
        except SafetensorError as error:
            raise ValueError(f"{model_name_or_path} has truncated or damaged weights: {error}") from error
        model, info = loaded
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])
            raise ValueError(f"{model_name_or_path} is not a whole CLIP model: it has no weights for {missing[0]!r}")
        self._model = model.float().to(self.device).eval()
        self._processor = CLIPImageProcessor.from_pretrained(model_name_or_path)
        tokenizer = CLIPTokenizer.from_pretrained(model_name_or_path)
        self._texts = {axis: self._embed_texts(tokenizer, list(texts.values())) for axis, texts in axes.items()}

    @torch.no_grad()
    def _embed_texts(self, tokenizer: Any, texts: list[str]) -> Tensor:
        """Unit vectors float32 [n_texts, d]."""
        inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(self.device)
        pooled = self._model.text_model(**inputs).pooler_output
        return torch.nn.functional.normalize(self._model.text_projection(pooled), dim=-1)

    @torch.no_grad()
    def _embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit vectors float32 [N, d]."""
        inputs = self._processor(images=[on_white(image) for image in images], return_tensors="pt").to(self.device)
        pooled = self._model.vision_model(pixel_values=inputs["pixel_values"]).pooler_output
        return torch.nn.functional.normalize(self._model.visual_projection(pooled), dim=-1)

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Probabilities float32 [N, n_labels] per axis."""
        starts = range(0, len(images), self.batch_size)
        vectors = torch.cat([self._embed_images(images[start : start + self.batch_size]) for start in starts])
        scale = self._model.logit_scale.exp()
        return {axis: (scale * vectors @ texts.T).softmax(-1).cpu() for axis, texts in self._texts.items()}
