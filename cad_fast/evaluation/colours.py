"""Damage to colours, which classifiers of objects do not see."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .scorers import on_white, paired, pixels

# sRGB to CIE XYZ under D65 (IEC 61966-2-1), with the white of D65 at one.
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_BINS = 8  # of each channel, in the histogram


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """SRGB in 0..1, float [..., 3], as CIELAB under D65: L in 0..100, a and b. Source: CIE 15:2004."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ (_TO_XYZ / _TO_XYZ.sum(axis=1, keepdims=True)).T
    limit = 6 / 29
    f = np.where(xyz > limit**3, np.cbrt(xyz), xyz / (3 * limit**2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def _lab(image: Image.Image) -> np.ndarray:
    return to_lab(pixels([image])[0].astype(np.float64) / 255)


class ColourStatistics:
    """Lightness, contrast and chroma of a picture, and how far its colours spread: a measure.

    In CIELAB: the mean of L, its standard deviation, and the mean of the chroma (a² + b²)^½. Colourfulness is that of
    Hasler and Süsstrunk 2003, Proc. SPIE 5007, on sRGB in 0..255.
    """

    name = "colour statistics"

    def measure(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, Tensor]:
        """Float64 [N] of "lightness", "contrast", "chroma" and "colourfulness"."""
        rows = [_statistics(image) for image in images]
        return {quantity: torch.tensor([row[quantity] for row in rows], dtype=torch.float64) for quantity in QUANTITIES}


QUANTITIES = ("lightness", "contrast", "chroma", "colourfulness")


def _statistics(image: Image.Image) -> dict[str, float]:
    lab = _lab(image)
    red, green, blue = np.moveaxis(pixels([image])[0].astype(np.float64), -1, 0)
    red_green, yellow_blue = red - green, (red + green) / 2 - blue
    spread = np.hypot(red_green.std(), yellow_blue.std())
    values = (
        lab[..., 0].mean(),
        lab[..., 0].std(),
        np.hypot(lab[..., 1], lab[..., 2]).mean(),
        spread + 0.3 * np.hypot(red_green.mean(), yellow_blue.mean()),
    )
    return {quantity: float(value) for quantity, value in zip(QUANTITIES, values, strict=True)}


class ColourDistance:
    """How far a picture's colours moved: a distance of pairs.

    "colour mean" is the difference of the mean colours in CIELAB (1976), where about 2 can just be seen. "colour
    histogram" is half the sum of the absolute differences of two histograms of 8 x 8 x 8 sRGB colours: 0 for the same
    colours, wherever they are, and 1 for no colour in common.
    """

    name = "colour distance"

    def distances(self, before: Sequence[Image.Image], after: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Float64 [N] of "colour mean" and "colour histogram"."""
        pairs = paired(before, after)
        means = [float(np.linalg.norm(_lab(a).mean(axis=(0, 1)) - _lab(b).mean(axis=(0, 1)))) for a, b in pairs]
        histograms = [float(np.abs(_histogram(a) - _histogram(b)).sum() / 2) for a, b in pairs]
        return {
            "colour mean": torch.tensor(means, dtype=torch.float64),
            "colour histogram": torch.tensor(histograms, dtype=torch.float64),
        }


def _histogram(image: Image.Image) -> np.ndarray:
    """Shares of the 8 x 8 x 8 colours, float64 [512]."""
    bins = np.asarray(on_white(image)).reshape(-1, 3).astype(np.int64) * _BINS // 256
    counts = np.bincount(bins @ np.array([_BINS * _BINS, _BINS, 1]), minlength=_BINS**3)
    return counts / counts.sum()
