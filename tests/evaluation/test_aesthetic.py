"""Aesthetic predictors on a tiny CLIP: both published forms of the head, and what is refused."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cad_fast.evaluation import AestheticMeasure, ClipMeasure, Measure
from tests.evaluation.tiny_clip import save_clip

IMAGES = [Image.new("RGB", (20, 24), colour) for colour in ("red", "green", "blue")]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("tiny-clip"))


def test_the_first_version_is_one_layer(clip, tmp_path):
    head = {"weight": torch.randn(1, 8), "bias": torch.randn(1)}
    save_file(head, tmp_path / "linear.safetensors")
    measure = AestheticMeasure(clip, tmp_path / "linear.safetensors")
    assert isinstance(measure, Measure) and measure.name.startswith("aesthetic predictor linear on CLIP tiny-clip")
    expected = ClipMeasure(clip).features(IMAGES) @ head["weight"][0] + head["bias"]
    torch.testing.assert_close(measure.measure(IMAGES, [""] * 3)["aesthetic"], expected)


def test_the_second_version_is_layers_in_the_order_of_their_numbers(clip, tmp_path):
    sizes = {0: (6, 8), 2: (5, 6), 10: (1, 5)}
    head = {f"layers.{i}.weight": torch.randn(size) for i, size in sizes.items()}
    head |= {f"layers.{i}.bias": torch.randn(size[0]) for i, size in sizes.items()}
    save_file(head, tmp_path / "mlp.safetensors")
    x = ClipMeasure(clip).features(IMAGES)
    for i in sizes:
        x = x @ head[f"layers.{i}.weight"].T + head[f"layers.{i}.bias"]
    found = AestheticMeasure(clip, tmp_path / "mlp.safetensors").measure(IMAGES, [""] * 3)["aesthetic"]
    torch.testing.assert_close(found, x[:, 0])


@pytest.mark.parametrize(
    "head, reason",
    [
        ({"weight": torch.ones(1, 9), "bias": torch.ones(1)}, "is for a CLIP model with 9 features, .* has 8"),
        ({"weight": torch.ones(2, 8), "bias": torch.ones(2)}, "is not a stack of linear layers"),
        ({"weight": torch.ones(1, 8)}, "is not a stack of linear layers"),
        ({"weight": torch.ones(1, 8), "bias": torch.ones(1), "more": torch.ones(1)}, "is not a stack"),
        ({"weight": torch.full((1, 8), float("nan")), "bias": torch.ones(1)}, "NaN or infinite weights in 'weight'"),
    ],
)
def test_other_heads_are_refused(clip, tmp_path, head, reason):
    save_file(head, tmp_path / "head.safetensors")
    with pytest.raises(ValueError, match=rf"head.safetensors.*{reason}"):
        AestheticMeasure(clip, tmp_path / "head.safetensors")
