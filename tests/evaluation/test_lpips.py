"""LPIPS with random weights of the published names: against torchmetrics' own, and what is refused."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from cad_fast.evaluation import Distance, Lpips


def alexnet() -> nn.Sequential:
    """AlexNet's convolutions as torchvision has them."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(3, 2),
    )  # fmt: skip


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        tensors = {f"features.{name}": value for name, value in alexnet().state_dict().items()}
        for i, channels in enumerate((64, 192, 384, 256, 256)):
            tensors[f"lin{i}.model.1.weight"] = torch.rand(1, channels, 1, 1)
    return tensors


@pytest.fixture(scope="module")
def weights(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("lpips") / "alex.safetensors"
    save_file(state, path)
    return path


def noise(seed: int, size: int = 40) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(0, 256, (size, size, 3), generator=generator, dtype=torch.uint8).numpy())


def test_it_agrees_with_torchmetrics(weights, state, monkeypatch):
    """Their network is of torchvision, of which AlexNet's layers are stood in for."""
    lpips = pytest.importorskip("torchmetrics.functional.image.lpips", reason="torchmetrics is not installed")
    stand_in = ModuleType("torchvision")
    stand_in.models = ModuleType("torchvision.models")
    stand_in.models.alexnet = lambda weights: type("AlexNet", (), {"features": alexnet()})
    monkeypatch.setitem(sys.modules, "torchvision", stand_in)
    monkeypatch.setattr(lpips, "_TORCHVISION_AVAILABLE", True)
    theirs = lpips._LPIPS(pretrained=False, net="alex", pnet_rand=True)
    for name, value in state.items():
        if name.startswith("lin"):
            theirs.get_parameter(name).data.copy_(value)
        else:
            number = name.split(".")[1]
            (where,) = [key for key, _ in theirs.named_parameters() if key.endswith(f".{number}.{name.split('.')[2]}")
                        and key.startswith("net.slice")]  # fmt: skip
            theirs.get_parameter(where).data.copy_(value)
    before, after = [noise(0), noise(1), noise(2, 32)], [noise(3), noise(1), noise(4, 32)]
    found = Lpips(weights).distances(before, after)["LPIPS"]
    tensors = [
        [torch.tensor(list(i.tobytes())).view(1, *i.size, 3).permute(0, 3, 1, 2) / 127.5 - 1 for i in images]
        for images in (before, after)
    ]
    expected = torch.cat([theirs(a, b).flatten() for a, b in zip(*tensors, strict=True)])
    torch.testing.assert_close(found, expected)
    assert found[1] == 0 and found[0] > 0


def test_what_does_not_fit_is_refused(weights, state, tmp_path):
    lpips = Lpips(weights)
    assert isinstance(lpips, Distance)
    assert lpips.distances([noise(0, 31)], [noise(1, 31)])["LPIPS"] > 0
    with pytest.raises(ValueError, match="at least 31 pixels, these are 30x30"):
        lpips.distances([noise(0, 30)], [noise(1, 30)])
    with pytest.raises(ValueError, match="the pictures are 32x32 and 40x40"):
        lpips.distances([noise(0, 32)], [noise(1)])
    partial = {name: value for name, value in state.items() if name != "lin2.model.1.weight"}
    save_file(partial, tmp_path / "partial.safetensors")
    with pytest.raises(ValueError, match=r"partial.safetensors has no 'lin2.model.1.weight'"):
        Lpips(tmp_path / "partial.safetensors")
    save_file({**state, "lin0.model.1.weight": torch.ones(1, 3, 1, 1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other.safetensors does not hold torchvision's weights of AlexNet"):
        Lpips(tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match=r"Download torchvision's weights of AlexNet .* and convert it"):
        Lpips(tmp_path / "none.safetensors")
