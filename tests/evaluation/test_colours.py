"""Colours: known values of CIELAB, what moves a distance and what does not."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cad_fast.evaluation import ColourDistance, ColourStatistics, Distance, Measure
from cad_fast.evaluation.colours import to_lab


def plain(colour: str) -> Image.Image:
    return Image.new("RGB", (4, 6), colour)


@pytest.mark.parametrize(
    "rgb, lab",
    [
        ((1, 1, 1), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 0, 1), (32.30, 79.19, -107.86)),
        ((0.5, 0.5, 0.5), (53.39, 0, 0)),
    ],
)
def test_cielab_of_known_colours(rgb, lab):
    """Source of the values: B. Lindbloom's calculator for sRGB under D65."""
    np.testing.assert_allclose(to_lab(np.array(rgb, dtype=float)), lab, atol=0.02)


def test_statistics_of_plain_and_of_mixed_pictures():
    half = Image.new("RGB", (4, 4), "black")
    half.paste("white", (0, 0, 2, 4))
    measure = ColourStatistics()
    assert isinstance(measure, Measure)
    values = measure.measure([plain("grey"), plain("red"), half], ["", "", ""])
    assert set(values) == {"lightness", "contrast", "chroma", "colourfulness"}
    assert values["lightness"].tolist() == pytest.approx([53.59, 53.24, 50], abs=0.02)
    assert values["contrast"].tolist() == pytest.approx([0, 0, 50], abs=0.02)
    assert values["chroma"].tolist() == pytest.approx([0, 104.55, 0], abs=0.02)
    # Red: a spread of 0, and means of 255 and 127.5.
    assert values["colourfulness"].tolist() == pytest.approx([0, 0.3 * np.hypot(255, 127.5), 0])


def test_distances_see_colours_and_not_places():
    left, right = Image.new("RGB", (4, 4), "blue"), Image.new("RGB", (4, 4), "blue")
    left.paste("white", (0, 0, 1, 4))
    right.paste("white", (3, 0, 4, 4))
    distance = ColourDistance()
    assert isinstance(distance, Distance)
    values = distance.distances(
        [plain("red"), left, plain("black"), left], [plain("red"), right, plain("white"), plain("blue")]
    )
    assert values["colour mean"].tolist()[:3] == pytest.approx([0, 0, 100], abs=1e-4)
    assert values["colour histogram"].tolist() == pytest.approx([0, 0, 1, 0.25])
    assert 0 < values["colour mean"][3] < 100
    with pytest.raises(ValueError, match="1 and 2 pictures are no pairs"):
        distance.distances([left], [left, right])
