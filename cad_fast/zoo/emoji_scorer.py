"""Object and style of emoji pictures, by the classifier that comes with the demo models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..evaluation.scorers import pixels
from ..files import read_json
from .classifier import EmojiClassifier

EMOJI_SIZE = 32


class EmojiScorer:
    """Object and style of emoji pictures, by the small classifier that comes with the demo models."""

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

    @torch.no_grad()
    def features(self, images: Sequence[Image.Image]) -> Tensor:
        """What the classifier's heads read, float32 [N, 128]: for Fréchet's distance between sets of pictures."""
        return self.classifier.features(self._pixels(images)).cpu()

    def _pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Images to float32 [N, 3, 32, 32] in -1..1, on the classifier's device."""
        device = next(self.classifier.parameters()).device
        small = torch.from_numpy(pixels(images, (EMOJI_SIZE, EMOJI_SIZE)))
        return small.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def _labels(value: object, key: str, path: Path) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(label, str) and label for label in value):
        raise ValueError(f"{path}: {key!r} is {value!r}, expected a list of names")
    if len(set(value)) != len(value):
        raise ValueError(f"{path}: {key!r} has a name twice: {value!r}")
    return tuple(value)
