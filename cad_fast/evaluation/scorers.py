"""What a picture shows: scorers give probabilities over the labels of one or more axes, such as object and style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..files import read_json
from ..zoo.classifier import EmojiClassifier

EMOJI_SIZE = 32


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


class EmojiScorer:
    """Object and style of emoji pictures, by the small classifier that comes with the demo model."""

    name = "emoji classifier"

    def __init__(self, classifier: EmojiClassifier, objects: Sequence[str], styles: Sequence[str]) -> None:
        self.classifier = classifier.float().eval()
        self.axes = {"object": tuple(objects), "style": tuple(styles)}
        self.held_out_accuracy: dict[str, float] = {}

    @classmethod
    def from_folder(cls, path: str | Path, device: str | torch.device = "cpu") -> EmojiScorer:
        """Load ``config.json`` and ``model.safetensors`` from the folder ``path``.

        ``held_out_accuracy`` is then what the config says of drawings not seen in training, per axis, in 0..1.
        Raises FileNotFoundError, or ValueError naming the file that is malformed, truncated or does not fit.
        """
        config_path, weights_path = Path(path) / "config.json", Path(path) / "model.safetensors"
        config = read_json(config_path)
        objects, styles = (_labels(config.get(key), key, config_path) for key in ("objects", "styles"))
        if not weights_path.is_file():
            raise FileNotFoundError(f"{weights_path} does not exist")
        try:
            state = load_file(weights_path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{weights_path} is truncated or not a safetensors file: {error}") from error
        classifier = EmojiClassifier(len(objects), len(styles))
        try:
            classifier.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{weights_path} does not fit the emoji classifier of {config_path}: {error}") from error
        broken = [name for name, value in classifier.state_dict().items() if not torch.isfinite(value).all()]
        if broken:
            raise ValueError(f"{weights_path} has NaN or infinite weights in {broken[0]!r}")
        scorer = cls(classifier.to(device), objects, styles)
        accuracy = config.get("held_out_accuracy", {})
        if not isinstance(accuracy, dict) or not all(isinstance(value, int | float) for value in accuracy.values()):
            raise ValueError(f"{config_path}: 'held_out_accuracy' is {accuracy!r}, expected one number per axis")
        scorer.held_out_accuracy = {axis: float(value) for axis, value in accuracy.items()}
        return scorer

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Probabilities float32 [N, 12] and [N, 3]; images of another size are scaled to 32x32."""
        objects, styles = self.classifier.probabilities(self._pixels(images))
        return {"object": objects.cpu(), "style": styles.cpu()}

    def _pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Images to float32 [N, 3, 32, 32] in -1..1, on the classifier's device."""
        size = (EMOJI_SIZE, EMOJI_SIZE)
        small = [i if i.size == size else i.resize(size, Image.Resampling.LANCZOS) for i in map(on_white, images)]
        pixels = np.stack([np.asarray(image) for image in small])
        device = next(self.classifier.parameters()).device
        return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def _labels(value: object, key: str, path: Path) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(label, str) and label for label in value):
        raise ValueError(f"{path}: {key!r} is {value!r}, expected a list of names")
    if len(set(value)) != len(value):
        raise ValueError(f"{path}: {key!r} has a name twice: {value!r}")
    return tuple(value)


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
            model, info = CLIPModel.from_pretrained(model_name_or_path, use_safetensors=True, output_loading_info=True)
        except SafetensorError as error:
            raise ValueError(f"{model_name_or_path} has truncated or damaged weights: {error}") from error
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])
            raise ValueError(f"{model_name_or_path} is not a whole CLIP model: it has no weights for {missing[0]!r}")
        self._model = model.float().to(self.device).eval()
        self._processor = CLIPImageProcessor.from_pretrained(model_name_or_path)
        tokenizer = CLIPTokenizer.from_pretrained(model_name_or_path)
        self._texts = {axis: self._embed_texts(tokenizer, list(texts.values())) for axis, texts in axes.items()}

    @torch.no_grad()
    def _embed_texts(self, tokenizer: object, texts: list[str]) -> Tensor:
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
