"""How J bends, from gradients of single rows at randomly ablated networks.

Under a random ablation the denoiser's output moves by d from its mean o, and J, a squared distance, by
c . d + d^T A d / 2. Scores predict the first part. They leave the second unexplained, and the fewer rows J is concerned
with, the larger it is: it varies from ablation to ablation, and no sum over components gives it.

Every recorded row is run forward and backward at some networks under random ablations. The gradients tell what their
outputs o_j have in common with d: dJ/do at o_j is c + A (o_j - o), so that the differences of the gradients predict
q_j = d^T A (o_j - o) for any ablation. With M_jk = (o_j - o)^T A (o_k - o), the part of d in their span gives

    d^T A d / 2  ~  q^T (M + ridge)^-1 M (M + ridge)^-1 q / 2

(Nystroem's approximation of the curvature). A single row moves in few directions, which is why rows are kept apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...components.ablation import Ablation
from ..curvature import Curvature, strongest

# Directions whose size is below the mean count less: they are mostly noise of the gradients.
RIDGE = 0.3
# J bends so many times as much as the directions say, by J of the passes. It is kept within these.
STRETCH = (0.0, 3.0)
# Directions are thinned out when there are so many times more than are to be kept.
_THIN_AT = 3


def bending(outputs: Tensor, cotangents: Tensor) -> tuple[Tensor, Tensor]:
    """Return (vectors [m, m], weights [m]) such that J of a row bends by sum_k weights_k (vectors_k^T q)^2.

    q [m] is what the gradients at the m networks, less their mean, predict for an ablation, less their own mean.
    Nothing bends where J is linear in the output: the weights are 0.

    Args:
        outputs: float32 [m, elements], of one row at m networks.
        cotangents: dJ / d(output) there, of the same shape.
    """
    moved, turned = (outputs - outputs.mean(0)).double(), (cotangents - cotangents.mean(0)).double()
    products = moved @ turned.T
    sizes, vectors = torch.linalg.eigh((products + products.T) / 2)
    mean = sizes.abs().mean()
    weights = torch.zeros_like(sizes) if float(mean) == 0 else sizes / (2 * (sizes.abs() + RIDGE * mean).square())
    return vectors.float(), weights.float()


class BendingSums:
    """What is known after so many passes: of finished rows, and of the row at hand.

    The tensors are float32:

    - ``alpha`` [n], the sum of the rows' mean gradients;
    - ``calibration`` [2], the covariance of predicted with measured bending and the variance of the predicted;
    - ``directions``, a list of [k, n], with ``signs``, a list of [k];
    - ``of_row``, of the row at hand, in parts, one per pass: the gradients [m, n], outputs and cotangents
      [m, elements] and J [m].

    Args:
        n: How many weights there are.
        fraction: The share of them that an ablation removes.
        keep: How many directions are kept.
        like: A tensor on the device where the sums go.
        before: What ``tensors`` gave, of a run that was stopped; or empty.
    """

    OF_ROW = ("gradients", "outputs", "cotangents", "j")

    def __init__(self, n: int, fraction: float, keep: int, like: Tensor, before: dict[str, Tensor]) -> None:
        self.fraction, self.keep = fraction, keep
        before = {name: tensor.to(like.device) for name, tensor in before.items()}
        self.alpha = before.get("alpha", torch.zeros(n, device=like.device))
        self.calibration = before.get("calibration", torch.zeros(2, device=like.device))
        self.directions = _listed(before, "directions")
        self.signs = _listed(before, "signs")
        self.of_row = {name: _listed(before, name) for name in self.OF_ROW}

    def tensors(self) -> dict[str, Tensor]:
        """Return all of it, for ``RunState``."""
        lists = {"directions": self.directions, "signs": self.signs, **self.of_row}
        named = {f"{name} {number}": part for name, parts in lists.items() for number, part in enumerate(parts)}
        return {"alpha": self.alpha, "calibration": self.calibration, **named}

    def add(self, *parts: Tensor) -> None:
        """Add gradients, outputs, cotangents and J of further networks of the row at hand."""
        for name, part in zip(self.OF_ROW, parts, strict=True):
            self.of_row[name].append(part.clone())

    def close(self, networks: Sequence[Ablation]) -> None:
        """Finish the row at hand, which has seen these networks, all of its own."""
        gradients, outputs, cotangents, j = (torch.cat(self.of_row[name]) for name in self.OF_ROW)
        mean = gradients.mean(0)
        self.alpha += mean
        gradients -= mean
        self.calibration += self._calibration(networks, gradients, mean, outputs, cotangents, j)
        vectors, weights = bending(outputs, cotangents)
        self.directions.append((weights.abs().sqrt()[:, None] * vectors.T) @ gradients)
        self.signs.append(weights.sign())
        self.of_row = {name: [] for name in self.OF_ROW}
        if sum(map(len, self.signs)) > _THIN_AT * self.keep:
            directions, weights = self._strongest()
            self.directions, self.signs = [weights.abs().sqrt()[:, None] * directions], [weights.sign()]

    def _strongest(self) -> tuple[Tensor, Tensor]:
        return strongest(torch.cat(self.directions), torch.cat(self.signs), self.keep)

    def _calibration(
        self,
        networks: Sequence[Ablation],
        gradients: Tensor,
        mean: Tensor,
        outputs: Tensor,
        cotangents: Tensor,
        j: Tensor,
    ) -> Tensor:
        """Compare, for every network, the bending that the others predict with what their gradients leave of its J.

        ``gradients`` [m, n] are less their ``mean`` [n]. Returns (covariance, variance of the predicted).
        """
        removed = torch.stack([ablation.mask for ablation in networks]).to(gradients.device).float()
        along = gradients @ removed.T - self.fraction * gradients.sum(1, keepdim=True)
        shared = removed @ mean - self.fraction * mean.sum()
        predicted, measured = [], []
        for number in range(len(j)):
            others = torch.arange(len(j), device=j.device) != number
            vectors, weights = bending(outputs[others], cotangents[others])
            q = along[others, number]
            predicted.append((weights * (vectors.T @ (q - q.mean())).square()).sum())
            measured.append(j[number] - j[others].mean() + q.mean() + shared[number])
        of_predicted, of_measured = torch.stack(predicted), torch.stack(measured)
        of_predicted, of_measured = of_predicted - of_predicted.mean(), of_measured - of_measured.mean()
        return torch.stack([of_predicted @ of_measured, of_predicted @ of_predicted])

    def result(self, rows: int) -> tuple[Tensor, Curvature, float]:
        """Return (scores float32 [n], curvature, its stretch) of so many rows, all of them finished."""
        covariance, variance = self.calibration.double().tolist()
        low, high = STRETCH
        stretch = min(high, max(low, covariance / variance)) if variance > 0 else low
        directions, weights = self._strongest()
        curvature = Curvature.of(directions, weights * stretch / rows, self.fraction)
        return (self.alpha / rows).cpu(), curvature, stretch


def _listed(tensors: dict[str, Tensor], name: str) -> list[Tensor]:
    """What was saved as "name 0", "name 1" and on."""
    count = sum(key.rpartition(" ")[0] == name for key in tensors)
    return [tensors[f"{name} {number}"] for number in range(count)]
