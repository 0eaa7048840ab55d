"""What judges pictures: scorers tell labels, measures give numbers, distances compare pictures with others.

A class may be several of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image
from torch import Tensor


@runtime_checkable
class Scorer(Protocol):
    """Says for each axis how probable each of its labels is.

    ``axes`` names the labels of each axis, in the order of the columns. Calling it with N images gives float32
    [N, n_labels] per axis. An optional attribute ``name`` is kept with the results.
    """

    axes: dict[str, tuple[str, ...]]

    def __call__(self, images: Sequence[Image.Image]) -> dict[str, Tensor]: ...


@runtime_checkable
class Measure(Protocol):
    """Gives numbers for each picture, such as how well it fits its prompt.

    ``name`` says what measures. ``measure`` is given N images and their prompts, and gives float [N] per quantity.
    """

    name: str

    def measure(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, Tensor]: ...


@runtime_checkable
class Distance(Protocol):
    """Says how far pictures are from others.

    ``name`` says what compares. ``distances`` is given two lists of images, and gives per quantity float [N] where
    they are N pairs, of the same seeds, or float [] where they are sets.
    """

    name: str

    def distances(self, before: Sequence[Image.Image], after: Sequence[Image.Image]) -> dict[str, Tensor]: ...


@runtime_checkable
class ImageFeatures(Protocol):
    """Gives a vector for each picture: ``features`` of N images is float [N, d]. ``name`` says whose they are."""

    name: str

    def features(self, images: Sequence[Image.Image]) -> Tensor: ...


def checked_measures(measure: Measure, images: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, list[float]]:
    """What ``measure`` says of ``images``: for each quantity one number per image.

    Raises ValueError naming the quantity when it gave another number of values, NaN or infinity.
    """
    checked = {}
    for quantity, raw in measure.measure(images, prompts).items():
        values = raw.detach().double().cpu()
        if values.shape != (len(images),):
            found = f"shape {list(values.shape)} for {quantity!r}, expected [{len(images)}]"
            raise ValueError(f"{measure.name} gave {found}")
        if not values.isfinite().all():
            row = int((~values.isfinite()).nonzero()[0, 0])
            raise ValueError(
                f"{measure.name} gave {float(values[row])} for {quantity!r} of image {row} of {len(images)}"
            )
        checked[quantity] = values.tolist()
    return checked


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


def pixels(images: Sequence[Image.Image], size: tuple[int, int] | None = None) -> np.ndarray:
    """RGB of images on white, uint8 [N, H, W, 3]; scaled to ``size`` (width, height) where they have another.

    Raises ValueError when there are none, or without ``size`` they differ in size.
    """
    if not images:
        raise ValueError("there are no pictures")
    plain = [on_white(image) for image in images]
    if size is not None:
        plain = [each if each.size == size else each.resize(size, Image.Resampling.LANCZOS) for each in plain]
    for image in plain:
        if image.size != plain[0].size:
            raise ValueError(f"the pictures are {plain[0].width}x{plain[0].height} and {image.width}x{image.height}")
    return np.stack([np.asarray(image) for image in plain])


def paired(before: Sequence[Image.Image], after: Sequence[Image.Image]) -> list[tuple[Image.Image, Image.Image]]:
    """The pairs of two lists. Raises ValueError when they differ in length: pairs have the same seeds."""
    if len(before) != len(after):
        raise ValueError(f"{len(before)} and {len(after)} pictures are no pairs of the same seeds")
    return list(zip(before, after, strict=True))
