"""How J bends under ablations, along a few directions. Scores, which are added up, cannot say it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..components.ablation import Ablation

# Of the eigenvalues of the directions' products, the largest being 1: below this they are rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Curvature:
    """The part of J that is quadratic in the ablation, beside what scores predict.

    With x_i the share of component i that is lost (1 where it is removed), J changes by

        sum_k weights_k ((directions_k . x - offsets_k)^2 - offsets_k^2)

    relative to the intact network.

    Args:
        directions: float16 or float32 [K, n].
        offsets: float32 [K], what the directions lose in a random ablation of the fraction that they were estimated at.
        weights: float32 [K].

    Raises:
        ValueError: A shape does not fit, or a value is not finite.
    """

    directions: Tensor
    offsets: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        if self.directions.dim() != 2:
            raise ValueError(f"directions has shape {list(self.directions.shape)}, expected [K, n]")
        for name in ("offsets", "weights"):
            if getattr(self, name).shape != self.directions.shape[:1]:
                shape = list(getattr(self, name).shape)
                raise ValueError(f"{name} has shape {shape}, expected [{len(self.directions)}], one per direction")
        for name, tensor in self.tensors().items():
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{name} has values that are NaN or infinite")

    @property
    def n(self) -> int:
        return self.directions.shape[1]

    def tensors(self) -> dict[str, Tensor]:
        return {"directions": self.directions, "offsets": self.offsets, "weights": self.weights}

    def change(self, ablation: Ablation) -> float:
        """Return by how much the quadratic part of J changes under the ablation, relative to the intact network."""
        lost = (1 - ablation.factors).double()
        along = self.directions[:, ablation.indices].double() @ lost - self.offsets.double()
        return float((self.weights.double() * (along.square() - self.offsets.double().square())).sum())

    def of_components(self, chosen: Tensor) -> Curvature:
        """Return the curvature for ablations within the chosen components alone, int64 [k], renumbered."""
        return Curvature(self.directions[:, chosen], self.offsets, self.weights)

    @classmethod
    def of(cls, directions: Tensor, weights: Tensor, fraction: float) -> Curvature:
        """Make one from directions float32 [K, n] in any scale. They are kept as float16, the scale in the weights."""
        scale = directions.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny)
        unit = (directions / scale[:, None]).half().cpu()
        offsets = fraction * unit.double().sum(1)
        return cls(unit, offsets.float(), (weights * scale.square()).float().cpu())


def strongest(directions: Tensor, weights: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Return the nearest form of fewer directions to the quadratic form sum_k weights_k (directions_k . x)^2.

    Nearest in the Frobenius norm, which is nearest in variance over random ablations.

    Args:
        directions: float32 [K, n].
        weights: float32 [K].
        keep: How many directions are returned, at most.

    Returns:
        Directions, orthogonal and of length 1, and weights, by decreasing size.
    """
    products = (directions @ directions.T).double()
    size, vectors = torch.linalg.eigh(products)
    real = size > _ROUNDING * size[-1]
    if not bool(real.any()) or float(size[-1]) == 0:
        return directions[:0], weights[:0]
    vectors, root = vectors[:, real], size[real].sqrt()
    # In the orthonormal basis (vectors / root)^T directions the form is root vectors^T diag(weights) vectors root.
    half = vectors * root
    values, turned = torch.linalg.eigh(half.T @ (weights.double()[:, None] * half))
    order = values.abs().argsort(descending=True)[:keep]
    mix = (vectors / root) @ turned[:, order]
    return mix.T.to(directions.dtype) @ directions, values[order].to(weights.dtype)
