"""The emoji pictures the demo model is trained on: which ones, from where, and how they are augmented.

Source: the npm packages ``emoji-datasource-google`` (Noto), ``emoji-datasource-twitter`` (Twemoji), both 64x64 PNG, and
``@lobehub/fluent-emoji-3d`` (Microsoft Fluent). See NOTICE for their licences.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..concepts import OBJECTS, STYLES

IMAGE_SIZE = 32
STYLE_FOLDERS = {
    "noto": ("emoji-datasource-google", "img/google/64", ".png"),
    "twemoji": ("emoji-datasource-twitter", "img/twitter/64", ".png"),
    "fluent": ("@lobehub/fluent-emoji-3d", "assets", ".webp"),
}

# Unicode code points, as the npm packages name their files. The last HELD_OUT of each object are never shown to the
# classifier in training, so that its accuracy is measured on drawings it has not seen.
HELD_OUT = 2
EMOJI = {
    "cat": "1f408 1f431 1f638 1f639 1f63a 1f63b 1f63c 1f63e 1f640 1f408-200d-2b1b 1f63d 1f63f",
    "dog": "1f415 1f429 1f436 1f415-200d-1f9ba 1f9ae 1f43a",
    "face": "1f600 1f603 1f604 1f601 1f606 1f605 1f602 1f642 1f643 1f609 1f60a 1f60d 1f60b 1f61b 1f610 1f611 1f636 "
    "1f60f 1f644 1f62c 1f614 1f62a 1f634 1f62e 1f61f 1f641 1f622 1f62d",
    "heart": "2764-fe0f 1f9e1 1f49b 1f49a 1f499 1f49c 1f5a4 1f90d 1f90e 1f493 1f497 1f496 1f498 1f49d 1f494 1fa77",
    "flower": "1f337 1f338 1f339 1f33a 1f33b 1f33c 1f490 1f4ae 1f3f5-fe0f 1fab7 1fabb 1f940",
    "car": "1f697 1f698 1f699 1f693 1f694 1f695 1f3ce-fe0f 1f6fb 1f69a 1f696",
    "fish": "1f41f 1f420 1f421 1f42c 1f433 1f40b 1f988",
    "fruit": "1f347 1f348 1f349 1f34a 1f34b 1f34c 1f34d 1f34e 1f34f 1f350 1f352 1f353 1f95d 1f96d 1fad0 1f351",
    "tree": "1f332 1f333 1f334 1f384 1f38b",
    "clock": "1f550 1f551 1f552 1f553 1f554 1f555 1f556 1f557 1f558 1f559 1f55a 1f55b 1f55c 1f55d 1f55e 1f55f 23f0 "
    "23f1-fe0f 1f570-fe0f 1f560 1f561",
    "moon": "1f311 1f312 1f313 1f314 1f315 1f316 1f317 1f318 1f319 1f31b 1f31c",
    "book": "1f4d7 1f4d8 1f4d9 1f4d5 1f4da 1f4d6 1f4d2 1f4d4",
}


@dataclass(frozen=True)
class Picture:
    """One drawing: which emoji, whose style, and its RGBA pixels."""

    code: str
    object: int
    style: int
    held_out: bool
    image: Image.Image


def load_pictures(root: str | Path) -> list[Picture]:
    """Read every drawing from a folder holding the three unpacked npm packages (``node_modules``).

    Raises FileNotFoundError naming the package that is missing.
    """
    root = Path(root)
    pictures = []
    for style, (package, folder, suffix) in STYLE_FOLDERS.items():
        directory = root / package / folder
        if not directory.is_dir():
            raise FileNotFoundError(f"{directory} is missing: run 'npm install {package}' and pass its node_modules")
        for obj, codes in EMOJI.items():
            names = codes.split()
            for rank, code in enumerate(names):
                path = directory / f"{code}{suffix}"
                if not path.exists():  # some sets leave out the emoji presentation selector
                    path = directory / f"{code.replace('-fe0f', '')}{suffix}"
                image = Image.open(path).convert("RGBA")
                held_out = rank >= len(names) - HELD_OUT
                pictures.append(Picture(code, OBJECTS.index(obj), STYLES.index(style), held_out, image))
    return pictures


def augment(picture: Picture, rng: np.random.Generator) -> np.ndarray:
    """One augmented view on white: flipped, rotated by +-12 degrees, scaled to 80-100%, shifted; uint8 [32, 32, 3]."""
    image = picture.image
    image = image.crop(image.getbbox())
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC, expand=True)
    size = IMAGE_SIZE * rng.uniform(0.8, 1.0)
    ratio = size / max(image.size)
    width, height = (max(1, round(side * ratio)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (IMAGE_SIZE, IMAGE_SIZE), "white")
    room_x, room_y = IMAGE_SIZE - width, IMAGE_SIZE - height
    at = (round(room_x * rng.uniform(0.3, 0.7)), round(room_y * rng.uniform(0.3, 0.7)))
    canvas.alpha_composite(image, (max(0, at[0]), max(0, at[1])))
    return np.asarray(canvas.convert("RGB"))


@dataclass
class EmojiSet:
    """Augmented views: images uint8 [N, 3, 32, 32]; objects, styles int64 [N]; held_out bool [N]."""

    images: Tensor
    objects: Tensor
    styles: Tensor
    held_out: Tensor

    @classmethod
    def build(cls, pictures: list[Picture], views: int, seed: int) -> EmojiSet:
        """``views`` augmented views of every picture, reproducible from ``seed``."""
        rng = np.random.default_rng(seed)
        pixels = np.stack([augment(p, rng) for p in pictures for _ in range(views)])

        def column(values: list, dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype).repeat_interleave(views)

        return cls(
            torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
            column([p.object for p in pictures], torch.int64),
            column([p.style for p in pictures], torch.int64),
            column([p.held_out for p in pictures], torch.bool),
        )


def to_float(images: Tensor) -> Tensor:
    """uint8 [..] in 0..255 to float32 in -1..1, the range of diffusers' VAEs."""
    return images.float() / 127.5 - 1.0
