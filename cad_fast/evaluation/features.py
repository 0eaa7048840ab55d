"""Distances of sets of pictures by features: Fréchet's and the kernel's, on any extractor of features."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..extras import require
from .scorers import ImageFeatures, pixels
from .weights import read_weights

SUBSETS, SUBSET_SIZE = 100, 1000  # of the kernel distance, as in its paper, where there are more pictures
INCEPTION = "inception-v3-compat"
INCEPTION_WEIGHTS = "the file weights-inception-2015-12-05-6726825d.pth of torch-fidelity's release 0.2.0"


class FeatureDistance:
    """Fréchet's distance and the kernel distance between the features of two sets of pictures.

    Those of Inception are FID (Heusel et al. 2017, arXiv 1706.08500) and KID (Bińkowski et al. 2018, arXiv 1801.01401);
    of other features they are called FD and KD. Both fall as sets grow alike. Fréchet's depends on the number of
    pictures: compare equal numbers, and many more than there are features. The kernel's does not, and can be below 0.
    """

    def __init__(self, extractor: ImageFeatures, short: tuple[str, str] = ("FD", "KD")) -> None:
        """``short``: what the two distances are called.

        Raises ImportError without torchmetrics: pip install 'cad-fast[torchmetrics]'.
        """
        self._frechet: Any = _torchmetrics("fid").FrechetInceptionDistance
        self._kernel: Any = _torchmetrics("kid").KernelInceptionDistance
        self.extractor = extractor
        self.name = extractor.name
        self.short = short

    def distances(self, before: Sequence[Image.Image], after: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Float64 [] of both. Raises ValueError for fewer than two pictures, or features that are not finite."""
        sets = [self._features(images) for images in (before, after)]
        return dict(zip(self.short, (self.frechet(*sets), self.kernel(*sets)), strict=True))

    def _features(self, images: Sequence[Image.Image]) -> Tensor:
        if len(images) < 2:
            raise ValueError(f"{self.name}: {len(images)} pictures, expected at least 2 to compare sets")
        features = self.extractor.features(images).detach().double().cpu()
        if features.ndim != 2 or len(features) != len(images):
            raise ValueError(f"{self.name} gave features of shape {list(features.shape)}, expected [{len(images)}, d]")
        if not features.isfinite().all():
            raise ValueError(f"{self.name} gave features that are not finite")
        return features

    def frechet(self, before: Tensor, after: Tensor) -> Tensor:
        """Fréchet's distance of two sets of features, float64 [n, d] and [m, d]."""
        metric = self._frechet(feature=_AsTheyAre(before.shape[1])).set_dtype(torch.float64)
        metric.update(before, real=True)
        metric.update(after, real=False)
        return metric.compute()

    def kernel(self, before: Tensor, after: Tensor) -> Tensor:
        """The unbiased kernel distance of two sets of features, float64 [n, d] and [m, d]: the mean over subsets."""
        fewest = min(len(before), len(after))
        size = min(fewest, SUBSET_SIZE)
        whole = size == len(before) == len(after)  # then every subset is the whole
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore", UserWarning)  # that it keeps all features, which are here anyway
            torch.manual_seed(0)
            metric = self._kernel(
                feature=_AsTheyAre(before.shape[1]), subsets=1 if whole else SUBSETS, subset_size=size
            )
            metric.set_dtype(torch.float64)
            metric.update(before, real=True)
            metric.update(after, real=False)
            return metric.compute()[0]


def _torchmetrics(part: str) -> ModuleType:
    try:
        require("torchmetrics", "torchmetrics")
        return require(f"torchmetrics.image.{part}", "torchmetrics")
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
        raise ImportError(
            "torch-fidelity is installed and torchvision, which it needs, is not: pip install 'cad-fast[fid]', or "
            "uninstall torch-fidelity, without which torchmetrics does for features other than Inception's",
            name="torchvision",
        ) from error


class _AsTheyAre(nn.Module):
    """Features in place of an extractor: torchmetrics takes what is put in as what was extracted."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


class InceptionFeatures:
    """The 2048 features of Inception v3 that FID and KID are defined on, by torch-fidelity.

    torch-fidelity needs torchvision, and torchmetrics needs both or neither.
    """

    name = "Inception v3"

    def __init__(self, weights: str | Path, device: str | torch.device = "cpu", batch_size: int = 32) -> None:
        """Load the weights from a safetensors file that you made of torch-fidelity's.

        Raises ImportError naming what is to be installed, FileNotFoundError saying what to download and how to convert
        it, ValueError for a file of other weights.
        """
        state = read_weights(weights, INCEPTION_WEIGHTS)
        try:
            module = require("torch_fidelity.feature_extractor_inceptionv3", "fid")
        except ModuleNotFoundError as error:
            raise ImportError(f"this needs {error.name}: pip install 'cad-fast[fid]'", name=error.name) from error
        network = module.FeatureExtractorInceptionV3
        # It reads its weights from a file by pickle: this one has just been written here.
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        try:
            self._network = network(INCEPTION, ["2048"], feature_extractor_weights_path=file).to(device)
        except RuntimeError as error:
            raise ValueError(f"{weights} does not hold {INCEPTION_WEIGHTS}: {error}") from error
        self.batch_size = batch_size

    @torch.no_grad()
    def features(self, images: Sequence[Image.Image]) -> Tensor:
        """Float32 [N, 2048]. Raises ValueError when pictures of one batch differ in size."""
        parts = []
        for start in range(0, len(images), self.batch_size):
            batch = torch.from_numpy(pixels(images[start : start + self.batch_size])).permute(0, 3, 1, 2)
            parts.append(self._network(batch.to(next(self._network.parameters()).device))[0].cpu())
        return torch.cat(parts)
