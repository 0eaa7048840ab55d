"""CLIP and models like it: zero-shot classification, the CLIP score, and features of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from .scorers import on_white

CLIP_SCORE = "CLIP score"


class ClipModel:
    """A CLIP or SigLIP of transformers as two functions, from texts and from images to unit vectors."""

    def __init__(
        self, model_name_or_path: str | Path, device: str | torch.device = "cpu", batch_size: int = 32
    ) -> None:
        """Load the model. Only safetensors are read.

        Raises ValueError when the folder holds no whole CLIP or SigLIP, OSError when there is no such model.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        path = Path(model_name_or_path)
        # The last part of a folder's path only: results are passed on, and paths of one machine mean nothing elsewhere.
        self.title = path.name if path.is_dir() else str(model_name_or_path)
        self.batch_size = batch_size
        self.device = torch.device(device)
        try:
            # transformers declares a model alone, but gives a pair where the loading information is asked for.
            loaded: Any = AutoModel.from_pretrained(model_name_or_path, use_safetensors=True, output_loading_info=True)
        except SafetensorError as error:
            raise ValueError(f"{model_name_or_path} has truncated or damaged weights: {error}") from error
        model, info = loaded
        if not all(hasattr(model, part) for part in ("text_model", "vision_model", "logit_scale")):
            raise ValueError(f"{model_name_or_path} is a {type(model).__name__}, expected a CLIP or SigLIP model")
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])
            raise ValueError(f"{model_name_or_path} is not a whole CLIP model: it has no weights for {missing[0]!r}")
        self.model = model.float().to(self.device).eval()
        self._processor = AutoImageProcessor.from_pretrained(model_name_or_path)
        self._tokenizer = AutoTokenizer.from_pretrained(model_name_or_path)

    @property
    def is_sigmoid(self) -> bool:
        """Whether the model was trained to judge every text by itself, as SigLIP, and not against other texts."""
        return hasattr(self.model, "logit_bias")

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors float32 [n_texts, d]; longer texts than the model knows are cut."""
        length = self.model.config.text_config.max_position_embeddings
        padding: Any = "max_length" if self.is_sigmoid else True  # as each was trained
        parts = []
        for start in range(0, len(texts), self.batch_size):
            part = list(texts[start : start + self.batch_size])
            inputs = self._tokenizer(part, padding=padding, truncation=True, max_length=length, return_tensors="pt")
            pooled = self.model.text_model(**inputs.to(self.device)).pooler_output
            parts.append(getattr(self.model, "text_projection", torch.nn.Identity())(pooled))
        return torch.nn.functional.normalize(torch.cat(parts), dim=-1)

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit vectors float32 [N, d]."""
        parts = []
        for start in range(0, len(images), self.batch_size):
            part = [on_white(image) for image in images[start : start + self.batch_size]]
            inputs = self._processor(images=part, return_tensors="pt").to(self.device)
            pooled = self.model.vision_model(pixel_values=inputs["pixel_values"]).pooler_output
            parts.append(getattr(self.model, "visual_projection", torch.nn.Identity())(pooled))
        return torch.nn.functional.normalize(torch.cat(parts), dim=-1)


class ClipScorer:
    """Zero-shot classification by CLIP or SigLIP, the CLIP score, and their features: a scorer and a measure.

    Of CLIP the probabilities are a softmax over the similarities of an image to the texts of an axis; of SigLIP each
    is that of its own text. Sources: Radford et al. 2021, arXiv 2103.00020; Zhai et al. 2023, arXiv 2303.15343.
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
        self._clip = ClipModel(model_name_or_path, device, batch_size)
        self.name = f"CLIP {self._clip.title}"
        self.axes = {axis: tuple(texts) for axis, texts in axes.items()}
        self._texts = {axis: self._clip.texts(list(texts.values())) for axis, texts in axes.items()}

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Probabilities float32 [N, n_labels] per axis."""
        vectors, model = self._clip.images(images), self._clip.model
        logits = {axis: model.logit_scale.exp() * vectors @ texts.T for axis, texts in self._texts.items()}
        if self._clip.is_sigmoid:
            return {axis: (values + model.logit_bias).sigmoid().cpu() for axis, values in logits.items()}
        return {axis: values.softmax(-1).cpu() for axis, values in logits.items()}

    def measure(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, Tensor]:
        """The CLIP score of each picture with its prompt: 100 times their cosine, at least 0; float32 [N].

        Source: Hessel et al. 2021, arXiv 2104.08718, with 100 for their 2.5, as is usual for generated pictures.
        """
        return clip_score(self._clip, images, prompts)

    def features(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit vectors float32 [N, d]."""
        return self._clip.images(images).cpu()


class ClipMeasure:
    """The CLIP score alone, for prompts whose pictures nobody judges; and features."""

    def __init__(
        self, model_name_or_path: str | Path, device: str | torch.device = "cpu", batch_size: int = 32
    ) -> None:
        """As ``ClipModel``."""
        self._clip = ClipModel(model_name_or_path, device, batch_size)
        self.name = f"CLIP {self._clip.title}"

    def measure(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, Tensor]:
        """As ``ClipScorer.measure``."""
        return clip_score(self._clip, images, prompts)

    def features(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit vectors float32 [N, d]."""
        return self._clip.images(images).cpu()


def clip_score(clip: ClipModel, images: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, Tensor]:
    """100 times the cosine of each picture and its prompt, at least 0."""
    cosines = (clip.images(images) * clip.texts(prompts)).sum(dim=-1)
    return {CLIP_SCORE: 100 * cosines.clamp(min=0).cpu()}
