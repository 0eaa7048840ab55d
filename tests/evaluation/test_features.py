"""Distances of sets of features: against closed forms and scipy, and what is refused."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from cad_fast import zoo
from cad_fast.evaluation import Distance, FeatureDistance, ImageFeatures
from cad_fast.evaluation.features import InceptionFeatures

IMAGES = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue", "white", "grey")]


def given(before: torch.Tensor, after: torch.Tensor) -> FeatureDistance:
    """A distance whose extractor gives these features, one after the other."""
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    parts = iter((before, after))
    return FeatureDistance(SimpleNamespace(name="given", features=lambda images: next(parts)))


def distances(before: torch.Tensor, after: torch.Tensor) -> dict[str, float]:
    found = given(before, after).distances([None] * len(before), [None] * len(after))
    return {name: float(value) for name, value in found.items()}


def test_frechet_agrees_with_scipy():
    linalg = pytest.importorskip("scipy.linalg", reason="scipy is not installed")
    before = torch.randn(40, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    after = torch.randn(30, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64) + 0.5
    covariances = [np.cov(each.numpy(), rowvar=False) for each in (before, after)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = float((before.mean(0) - after.mean(0)).square().sum()) + np.trace(sum(covariances) - 2 * root)
    assert distances(before, after)["FD"] == pytest.approx(expected, rel=1e-9)


def test_kernel_is_the_unbiased_mean_over_all_pairs():
    before, after = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64) + 1

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a @ b / 4 + 1) ** 3)

    n = len(before)
    within = sum(kernel(x[i], x[j]) for x in (before, after) for i in range(n) for j in range(n) if i != j)
    across = sum(kernel(a, b) for a in before for b in after)
    assert distances(before, after)["KD"] == pytest.approx(within / (n * (n - 1)) - 2 * across / n**2)


def test_the_same_seedless_call_gives_the_same_and_leaves_torchs_seed():
    before, after = torch.randn(7, 4), torch.randn(9, 4)
    state = torch.random.get_rng_state()
    first = distances(before, after)
    assert first == distances(before, after) and torch.equal(state, torch.random.get_rng_state())
    assert distances(before, before)["FD"] == pytest.approx(0, abs=1e-4)


def test_the_zoos_classifier_gives_what_its_heads_read():
    scorer = zoo.scorer()
    assert isinstance(scorer, ImageFeatures)
    features = scorer.features(IMAGES)
    logits = scorer.classifier.object_head(features).softmax(-1)
    torch.testing.assert_close(scorer(IMAGES)["object"], logits.detach())
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    distance = FeatureDistance(scorer)
    assert isinstance(distance, Distance) and distance.name == "emoji classifier"
    found = distance.distances(IMAGES[:3], IMAGES[2:])
    assert set(found) == {"FD", "KD"} and found["FD"] > 0


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="given: 1 pictures, expected at least 2"):
        distances(torch.ones(1, 2), torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"given gave features of shape \[3\]"):
        distances(torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match="features that are not finite"):
        distances(torch.full((3, 2), float("nan")), torch.ones(3, 2))


def test_without_the_packages_the_error_names_the_extra(monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.startswith("torchmetrics.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(ImportError, match=r"pip install 'cad-fast\[torchmetrics\]'"):
        FeatureDistance(zoo.scorer())
    with pytest.raises(FileNotFoundError, match=r"does not exist. Download the file weights-inception.* convert it"):
        InceptionFeatures(tmp_path / "inception.safetensors")
    with pytest.raises(ValueError, match=r"is not a .safetensors file, and no other weights are loaded"):
        InceptionFeatures(tmp_path / "inception.pth")


def test_inception_features_have_the_weights_of_the_file(tmp_path):
    """With random weights: of the published ones there is none to download in a test."""
    module = pytest.importorskip(
        "torch_fidelity.feature_extractor_inceptionv3", reason="torch-fidelity with torchvision is not installed"
    )
    from safetensors.torch import save_file

    class Random(module.FeatureExtractorInceptionV3):
        def load_state_dict(self, state):
            return None

    buffer = tmp_path / "empty.pt"
    torch.save({}, buffer)
    network = Random("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(buffer))
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, tmp_path / "i.safetensors")
    features = InceptionFeatures(tmp_path / "i.safetensors").features(IMAGES[:2])
    pixels = torch.tensor([[[[c] * 32] * 32 for c in i.getpixel((0, 0))] for i in IMAGES[:2]])
    torch.testing.assert_close(features, network(pixels.to(torch.uint8))[0])
