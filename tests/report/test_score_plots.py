"""Plots about scores: pictures of the right kind that show what they are given."""

import io

import pytest
import torch
from PIL import Image

from cad_fast.attribution.trust import Trust
from cad_fast.edits import Damage
from cad_fast.report import cost_plot, damage_plot, fractions_plot, overlap_plot

pytest.importorskip("matplotlib")


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    assert image.format == "PNG" and min(image.size) > 200
    return image


def point(method: str, rows: int, r: float) -> dict:
    return {"method": method, "row_evaluations": rows, "seconds": rows / 100, "r": r, "interval": [r - 0.1, r + 0.1]}


def test_cost() -> None:
    points = [point("gradient", 60, 0.3), point("ablated gradient", 1200, 0.9), point("ablated gradient", 2400, 0.92)]
    data = cost_plot(points, title="cost")
    opened(data)
    assert cost_plot(points, title="cost") == data
    assert cost_plot([*points[:-1], point("ablated gradient", 2400, 0.5)], title="cost") != data


def test_fractions() -> None:
    predicted = torch.randn(30)
    checks = [Trust.of(predicted, predicted + torch.randn(30), f).to_dict() for f in (0.01, 0.2)]
    data = fractions_plot({"gradient": checks})
    opened(data)
    assert fractions_plot({"gradient": checks[:1]}) != data


def test_overlap() -> None:
    shares = torch.eye(3)
    shares[0, 1] = shares[1, 0] = 0.4
    data = overlap_plot(shares, ["cat", "dog", "car"])
    opened(data)
    assert overlap_plot(torch.eye(3), ["cat", "dog", "car"]) != data
    with pytest.raises(ValueError, match=r"shares has shape \[3, 3\], expected \[2, 2\]"):
        overlap_plot(shares, ["cat", "dog"])


def test_damage() -> None:
    damages = {"car": Damage(-2.0, -0.8, 0.1), "cat": Damage(-0.1, -0.05, None)}
    alone, beside = opened(damage_plot(damages)), opened(damage_plot(damages, {"car": -1.0, "cat": 0.0}))
    assert beside.size[0] > alone.size[0]
    with pytest.raises(ValueError, match="the scores of 'dog' do not know J"):
        damage_plot({"dog": Damage(1.0, None, None)})
