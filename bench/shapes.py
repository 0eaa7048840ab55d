"""The shapes that all benchmarks share: layers of the embedded demo model and of Stable Diffusion 1.x."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LinearShape:
    """A linear layer [N, K] and where it occurs."""

    name: str
    n: int
    k: int


@dataclass(frozen=True)
class ConvShape:
    """A convolution [N, C, kernel, kernel] on images of size x size, stride 1, and where it occurs."""

    name: str
    n: int
    c: int
    kernel: int
    size: int


VARIANTS = 16
ROWS = (1, 16, 64, 256)
"""Rows per variant."""

LINEARS = (
    LinearShape("emoji ff up 48", 384, 48),
    LinearShape("emoji ff down 96", 96, 384),
    LinearShape("emoji ff up 96", 768, 96),
    LinearShape("sd1 attn k/v 320", 320, 768),
    LinearShape("sd1 ff up 320", 2560, 320),
    LinearShape("sd1 ff down 320", 320, 1280),
    LinearShape("sd1 ff up 640", 5120, 640),
    LinearShape("sd1 ff down 1280", 1280, 5120),
)
CONVS = (
    ConvShape("emoji 48 8x8", 48, 48, 3, 8),
    ConvShape("emoji 96 4x4", 96, 96, 3, 4),
    ConvShape("emoji 24 16x16", 24, 24, 3, 16),
    ConvShape("sd1 1280 4x4", 1280, 1280, 3, 4),
    ConvShape("sd1 1280 8x8", 1280, 1280, 3, 8),
    ConvShape("sd1 640 16x16", 640, 640, 3, 16),
    ConvShape("sd1 320 32x32", 320, 320, 3, 32),
    ConvShape("sd1 1x1 640 16x16", 640, 640, 1, 16),
)
MASK_FRACTION = 0.05
EDIT_FRACTION = 0.01
