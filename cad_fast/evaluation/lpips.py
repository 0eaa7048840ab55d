"""LPIPS: how different two pictures look, by the features of AlexNet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from .scorers import paired, pixels
from .weights import read_weights

PUBLISHED = (
    "torchvision's weights of AlexNet (alexnet-owt-7be5be79.pth: its features.*) together with those of LPIPS "
    "(lpips/weights/v0.1/alex.pth: its lin*) in one file"
)
# The convolutions of AlexNet: number in torchvision, channels, size, stride, padding. After 0 and 3 it pools.
_LAYERS = (
    (0, 3, 64, 11, 4, 2),
    (3, 64, 192, 5, 1, 2),
    (6, 192, 384, 3, 1, 1),
    (8, 384, 256, 3, 1, 1),
    (10, 256, 256, 3, 1, 1),
)
_POOLED = (3, 6)
SMALLEST = 31  # a side of the pictures: what AlexNet's convolutions and pools need


class Lpips:
    """LPIPS with AlexNet, version 0.1: a distance of pairs, 0 for the same pictures.

    Source: Zhang et al. 2018, arXiv 1801.03924. Written here, as the kept packages need torchvision and read pickles;
    it agrees with that of torchmetrics.
    """

    def __init__(self, weights: str | Path, device: str | torch.device = "cpu") -> None:
        """Load the weights from one safetensors file with ``features.*`` of AlexNet and ``lin*`` of LPIPS.

        Raises FileNotFoundError saying what to download and convert, ValueError for other weights.
        """
        self.name = "LPIPS (AlexNet)"
        self._network = _Network()
        state = read_weights(weights, PUBLISHED)
        own = self._network.state_dict()
        missing = sorted(own.keys() - state.keys())
        if missing:
            raise ValueError(f"{weights} has no {missing[0]!r}, expected {PUBLISHED}")
        try:
            self._network.load_state_dict({name: state[name] for name in own})
        except RuntimeError as error:
            raise ValueError(f"{weights} does not hold {PUBLISHED}: {error}") from error
        self._network.float().to(device).eval()

    @torch.no_grad()
    def distances(self, before: Sequence[Image.Image], after: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Float32 [N] of "LPIPS". Raises ValueError for pictures of different or too small sizes."""
        device = next(self._network.parameters()).device
        parts = []
        for a, b in paired(before, after):  # the pictures of one pair agree in size, those of others need not
            pair = torch.from_numpy(pixels([a, b])).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
            if min(pair.shape[2:]) < SMALLEST:
                raise ValueError(f"LPIPS needs pictures of at least {SMALLEST} pixels, these are {a.width}x{a.height}")
            parts.append(self._network(pair[:1], pair[1:]))
        return {"LPIPS": torch.cat(parts).cpu()}


class _Network(nn.Module):
    """AlexNet up to its last convolution, and one weight for each channel of five layers."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict(
            {
                str(number): nn.Conv2d(c_in, c_out, size, stride, padding)
                for number, c_in, c_out, size, stride, padding in _LAYERS
            }
        )
        for i, (_, _, channels, *_) in enumerate(_LAYERS):
            lin = nn.Module()
            lin.model = nn.ModuleDict({"1": nn.Conv2d(channels, 1, 1, bias=False)})
            self.add_module(f"lin{i}", lin)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None], persistent=False)

    def _layers(self, images: Tensor) -> list[Tensor]:
        """Of images in -1..1 the five layers after their ReLU, each with channel vectors of length 1."""
        x = (images - self.shift) / self.scale
        layers = []
        for number, *_ in _LAYERS:
            if number in _POOLED:
                x = nn.functional.max_pool2d(x, 3, 2)
            x = torch.relu(self.features[str(number)](x))
            layers.append(x / (x.square().sum(dim=1, keepdim=True) + 1e-8).sqrt())
        return layers

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Float [N]."""
        total = torch.zeros(len(before), device=before.device)
        for i, (a, b) in enumerate(zip(self._layers(before), self._layers(after), strict=True)):
            weighted = self.get_submodule(f"lin{i}.model.1")((a - b).square())
            total = total + weighted.mean(dim=(1, 2, 3))
        return total
