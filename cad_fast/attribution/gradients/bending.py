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

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise

import torch
from torch import Tensor

from ...components.ablation import Ablation
from ...components.module_components import ModuleComponents
from ...components.space import ComponentSpace
from ..curvature import Curvature, places_of, strongest

# Directions whose size is below the mean count less: they are mostly noise of the gradients.
RIDGE = 0.3
# J bends so many times as much as the directions say, by J of the passes. It is kept within these.
STRETCH = (0.0, 3.0)
# Directions are thinned out when there are so many times more than are to be kept.
_THIN_AT = 1.25


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


class Networks:
    """The ablations of one picture's rows, as numbers of the weights that each removes.

    Args:
        space: The weights.
        columns: int64 [m], those that directions are kept of, ascending.
        ablations: The networks.
    """

    def __init__(self, space: ComponentSpace, columns: Tensor, ablations: Sequence[Ablation]) -> None:
        indices = [ablation.indices for ablation in ablations]
        starts = torch.tensor([entry.offset for entry in space] + [space.n])
        bounds = [torch.searchsorted(numbers, starts).tolist() for numbers in indices]
        self._place = {entry.module: place for place, entry in enumerate(space)}
        self._indices, self._bounds = [numbers.int() for numbers in indices], bounds
        self.columns = [places_of(columns, numbers)[0] for numbers in indices]
        """Per network, which of the columns it removes."""

    def __len__(self) -> int:
        return len(self._indices)

    def within(self, entry: ModuleComponents) -> Iterator[Tensor]:
        """Per network, which weights of a module it removes, int32, from 0 on."""
        place = self._place[entry.module]
        for numbers, bounds in zip(self._indices, self._bounds, strict=True):
            yield numbers[bounds[place] : bounds[place + 1]] - entry.offset


class BendingSums:
    """What is known after so many passes: of finished rows, and of the row at hand.

    The tensors are float32:

    - ``alpha`` [n], the sum of the rows' mean gradients;
    - ``calibration`` [2], the covariance of predicted with measured bending and the variance of the predicted;
    - ``columns`` int64 [m], the weights that directions are kept of;
    - ``directions``, a list of [k, m], with ``signs``, a list of [k];
    - ``of_row``, of the row at hand, in parts, one per pass: the gradients [j, m] of its networks, what these predict
      for each of the row's networks, by all weights, less the mean over ablations, [j, networks], outputs and
      cotangents [j, elements] and J [j].

    Args:
        space: The weights.
        fraction: The share of them that an ablation removes.
        keep: How many directions are kept.
        columns: int64 [m], the weights that directions are kept of, ascending.
        like: A tensor on the device where the sums go.
        before: What ``tensors`` gave, of a run that was stopped; or empty.
    """

    OF_ROW = ("gradients", "along", "outputs", "cotangents", "j")

    def __init__(
        self,
        space: ComponentSpace,
        fraction: float,
        keep: int,
        columns: Tensor,
        like: Tensor,
        before: Mapping[str, Tensor],
    ) -> None:
        self.space, self.fraction, self.keep = space, fraction, keep
        before = {name: tensor.to(like.device) for name, tensor in before.items()}
        self.columns = columns.to(like.device)
        self.alpha = before.get("alpha", torch.zeros(space.n, device=like.device))
        self.calibration = before.get("calibration", torch.zeros(2, device=like.device))
        self.directions = _listed(before, "directions")
        self.signs = _listed(before, "signs")
        self.of_row = {name: _listed(before, name) for name in self.OF_ROW}
        starts = torch.tensor([entry.offset for entry in space] + [space.n], device=like.device)
        bounds = torch.searchsorted(self.columns, starts).tolist()
        self._bounds = {entry.module: pair for entry, pair in zip(space, pairwise(bounds), strict=True)}

    def tensors(self) -> dict[str, Tensor]:
        """Return all of it, for ``RunState``."""
        lists = {"directions": self.directions, "signs": self.signs, **self.of_row}
        named = {f"{name} {number}": part for name, parts in lists.items() for number, part in enumerate(parts)}
        return {"alpha": self.alpha, "calibration": self.calibration, "columns": self.columns, **named}

    def begin(self, stretches: Sequence[tuple[int, int, int, Networks]]) -> None:
        """Get ready for a pass: of each row, where its variants begin and end, its networks' number, and these."""
        variants, device = stretches[-1][1], self.alpha.device
        self._stretches = stretches
        self._shares = torch.zeros(variants, device=device)
        for at, end, count, _ in stretches:
            self._shares[at:end] = 1 / count
        self._gradients = torch.zeros(variants, len(self.columns), device=device)
        self._along = torch.zeros(variants, max(count for _, _, count, _ in stretches), device=device)

    def take(self, entry: ModuleComponents, gradients: Tensor) -> None:
        """Add a module's gradients of the pass, float32 [V, count]."""
        low, high = self._bounds[entry.module]
        self._gradients[:, low:high] += gradients[:, self.columns[low:high] - entry.offset]
        self.alpha[entry.offset : entry.offset + entry.count] += self._shares @ gradients
        mean = self.fraction * gradients.sum(1)
        for at, end, count, networks in self._stretches:
            part = gradients[at:end]
            for number, removed in enumerate(islice(networks.within(entry), count)):
                self._along[at:end, number] += part[:, removed.to(part.device)].sum(1) - mean[at:end]

    def add(self, at: int, end: int, count: int, *parts: Tensor) -> None:
        """Add what was taken, and outputs, cotangents and J, of these variants: further networks of the row at hand."""
        taken = self._gradients[at:end], self._along[at:end, :count]
        for name, part in zip(self.OF_ROW, (*taken, *(part[at:end] for part in parts)), strict=True):
            self.of_row[name].append(part.clone())

    def close(self, networks: Networks) -> None:
        """Finish the row at hand, which has seen the first of these networks, all of its own."""
        gradients, along, outputs, cotangents, j = (torch.cat(self.of_row[name]) for name in self.OF_ROW)
        self.of_row = {name: [] for name in self.OF_ROW}
        gradients -= gradients.mean(0)
        self.calibration += self._calibration(networks, gradients, along, outputs, cotangents, j)
        vectors, weights = bending(outputs, cotangents)
        self.directions.append((weights.abs().sqrt()[:, None] * vectors.T) @ gradients)
        self.signs.append(weights.sign())
        del gradients
        if sum(map(len, self.signs)) > _THIN_AT * self.keep:
            directions, weights = self._strongest()
            self.directions, self.signs = [directions.mul_(weights.abs().sqrt()[:, None])], [weights.sign()]

    def _strongest(self) -> tuple[Tensor, Tensor]:
        return strongest(self.directions, torch.cat(self.signs), self.keep)

    def _calibration(
        self, networks: Networks, gradients: Tensor, full: Tensor, outputs: Tensor, cotangents: Tensor, j: Tensor
    ) -> Tensor:
        """Compare, for every network, the bending that the others predict with what their gradients leave of its J.

        ``gradients`` [j, m] are less their mean, ``full`` [j, j] is by all weights. Returns (covariance, variance of
        the predicted).
        """
        mean = self.fraction * gradients.sum(1)
        removed = [networks.columns[number].to(gradients.device) for number in range(len(j))]
        along = torch.stack([gradients[:, places].sum(1) - mean for places in removed], 1)
        predicted, measured = [], []
        for number in range(len(j)):
            others = torch.arange(len(j), device=j.device) != number
            vectors, weights = bending(outputs[others], cotangents[others])
            q = along[others, number]
            predicted.append((weights * (vectors.T @ (q - q.mean())).square()).sum())
            measured.append(j[number] - j[others].mean() + full[others, number].mean())
        of_predicted, of_measured = torch.stack(predicted), torch.stack(measured)
        of_predicted, of_measured = of_predicted - of_predicted.mean(), of_measured - of_measured.mean()
        return torch.stack([of_predicted @ of_measured, of_predicted @ of_predicted])

    def result(self, rows: int) -> tuple[Tensor, Curvature, float]:
        """Return (scores float32 [n], curvature, its stretch) of so many rows, all of them finished."""
        covariance, variance = self.calibration.double().tolist()
        low, high = STRETCH
        stretch = min(high, max(low, covariance / variance)) if variance > 0 else low
        directions, weights = self._strongest()
        curvature = Curvature.of(directions, weights * stretch / rows, self.fraction, self.columns, self.space.n)
        return (self.alpha / rows).cpu(), curvature, stretch


class MovedWeights:
    """How much the gradients of each weight differ between the networks of a row: where J bends.

    The sum over rows of the variance of w_i dJ/dw_i over networks, ``sums`` float32 [n].

    Args:
        n: How many weights there are.
        like: A tensor on the device where the sums go.
    """

    def __init__(self, n: int, like: Tensor) -> None:
        self.sums = torch.zeros(n, device=like.device)
        self._stretches: Sequence[tuple[int, int]] = ()

    def begin(self, stretches: Sequence[tuple[int, int]]) -> None:
        """Get ready for a pass: where the variants of each row begin and end."""
        self._stretches = stretches

    def take(self, entry: ModuleComponents, gradients: Tensor) -> None:
        """Add a module's gradients of the pass, float32 [V, count]."""
        for at, end in self._stretches:
            own = gradients[at:end]
            self.sums[entry.offset : entry.offset + entry.count] += (own - own.mean(0)).square().sum(0)

    def most(self, count: int) -> Tensor:
        """Return the weights with the largest sums, int64 [count], ascending."""
        return self.sums.topk(min(count, len(self.sums))).indices.sort().values


def _listed(tensors: dict[str, Tensor], name: str) -> list[Tensor]:
    """What was saved as "name 0", "name 1" and on."""
    count = sum(key.rpartition(" ")[0] == name for key in tensors)
    return [tensors[f"{name} {number}"] for number in range(count)]
