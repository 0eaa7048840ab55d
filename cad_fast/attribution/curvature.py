"""How J bends under ablations, along a few directions. Scores, which are added up, cannot say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ..components.ablation import Ablation

# Of the eigenvalues of the directions' products, the largest being 1: below this they are rounding.
_ROUNDING = 1e-9
# An entry of a direction is kept as so many steps of its component's unit, in either direction.
_STEPS = 127


@dataclass(frozen=True)
class Curvature:
    """The part of J that is quadratic in the ablation, beside what scores predict.

    With x_i the share of component i that is lost (1 where it is removed), J changes by

        sum_k weights_k ((directions_k . x - offsets_k)^2 - offsets_k^2)

    relative to the intact network. The directions may be of some components alone, ``columns``. The others then bend
    nothing. Directions of int8 are in units of ``scales``.

    Args:
        directions: float16, float32 or int8 [K, m], with m = n where there are no ``columns``.
        offsets: float32 [K], what the directions lose in a random ablation of the fraction that they were estimated at.
        weights: float32 [K].
        columns: int32 [m], which components the directions are of, ascending. None for all.
        scales: float32 [m], the unit of every component's entries. None for 1.
        components: int64 [1], n. None without ``columns``.

    Raises:
        ValueError: A shape does not fit, a value is not finite, or the columns are not ascending or not within n.
    """

    directions: Tensor
    offsets: Tensor
    weights: Tensor
    columns: Tensor | None = None
    scales: Tensor | None = None
    components: Tensor | None = None

    def __post_init__(self) -> None:
        if self.directions.dim() != 2:
            raise ValueError(f"directions has shape {list(self.directions.shape)}, expected [K, n]")
        count, m = self.directions.shape
        for name in ("offsets", "weights"):
            if getattr(self, name).shape != (count,):
                shape = list(getattr(self, name).shape)
                raise ValueError(f"{name} has shape {shape}, expected [{count}], one per direction")
        for name in ("columns", "scales"):
            tensor = getattr(self, name)
            if tensor is not None and tensor.shape != (m,):
                raise ValueError(f"{name} has shape {list(tensor.shape)}, expected [{m}], one per column of directions")
        if (self.columns is None) != (self.components is None):
            raise ValueError("columns and components go together: one of them is missing")
        for name, tensor in self.tensors().items():
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{name} has values that are NaN or infinite")
        if self.columns is not None and len(self.columns):
            ascending = bool((self.columns[1:] > self.columns[:-1]).all())
            if not ascending or int(self.columns[0]) < 0 or int(self.columns[-1]) >= self.n:
                raise ValueError(f"columns are not ascending numbers of the {self.n} components")

    @property
    def n(self) -> int:
        return self.directions.shape[1] if self.components is None else int(self.components)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Return those that there are, by the names of the arguments."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def change(self, ablation: Ablation) -> float:
        """Return by how much the quadratic part of J changes under the ablation, relative to the intact network."""
        lost, places = (1 - ablation.factors).double(), ablation.indices
        if self.columns is not None:
            places, among = places_of(self.columns, places)
            lost = lost[among]
        if self.scales is not None:
            lost = lost * self.scales[places].double()
        along = self.directions[:, places].double() @ lost - self.offsets.double()
        return float((self.weights.double() * (along.square() - self.offsets.double().square())).sum())

    def of_components(self, chosen: Tensor) -> Curvature:
        """Return the curvature for ablations within the chosen components alone, int64 [k] ascending, renumbered."""
        if self.columns is None:
            return replace(self, directions=self.directions[:, chosen])
        places, among = places_of(self.columns, chosen)
        return replace(
            self,
            directions=self.directions[:, places],
            columns=among.nonzero().flatten().int(),
            scales=None if self.scales is None else self.scales[places],
            components=torch.tensor([len(chosen)]),
        )

    @classmethod
    def of(cls, directions: Tensor, weights: Tensor, fraction: float, columns: Tensor, n: int) -> Curvature:
        """Make one from directions float32 [K, m], in any scale, of the components ``columns``, int64 [m] ascending.

        The entries are kept as int8, each in the unit of its component and its direction. That of the direction goes
        into the weights.
        """
        tiny = torch.finfo(torch.float32).tiny
        length = directions.square().mean(1).sqrt().clamp(min=tiny) if directions.numel() else weights.new_ones(0)
        unit = directions / length[:, None]
        scales = (unit.abs().amax(0) if len(unit) else unit.new_zeros(unit.shape[1])).clamp(min=tiny) / _STEPS
        kept = (unit / scales).round().to(torch.int8).cpu()
        scales = scales.cpu()
        offsets = fraction * (kept.double() @ scales.double())
        return cls(
            kept,
            offsets.float(),
            (weights * length.square()).float().cpu(),
            columns.to(torch.int32).cpu(),
            scales,
            torch.tensor([n]),
        )


def places_of(columns: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Return where in ``columns`` those of ``indices`` stand that are there, and which these are, bool.

    Args:
        columns: [m], ascending.
        indices: int64 [k], ascending.
    """
    if not len(columns):
        return torch.zeros(0, dtype=torch.long), torch.zeros(len(indices), dtype=torch.bool)
    columns = columns.to(indices.dtype)
    places = torch.searchsorted(columns, indices).clamp(max=len(columns) - 1)
    among = columns[places] == indices
    return places[among], among


def strongest(directions: Tensor | Sequence[Tensor], weights: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Return the nearest form of fewer directions to the quadratic form sum_k weights_k (directions_k . x)^2.

    Nearest in the Frobenius norm, which is nearest in variance over random ablations.

    Args:
        directions: float32 [K, n], or several of these, which are not copied.
        weights: float32 [K], of all.
        keep: How many directions are returned, at most.

    Returns:
        Directions, orthogonal and of length 1, and weights, by decreasing size.
    """
    blocks = [directions] if isinstance(directions, Tensor) else list(directions)
    products = torch.cat([torch.cat([block @ other.T for other in blocks], 1) for block in blocks]).double()
    size, vectors = torch.linalg.eigh(products)
    real = size > _ROUNDING * size[-1]
    if not bool(real.any()) or float(size[-1]) == 0:
        return blocks[0][:0], weights[:0]
    vectors, root = vectors[:, real], size[real].sqrt()
    # In the orthonormal basis (vectors / root)^T directions the form is root vectors^T diag(weights) vectors root.
    half = vectors * root
    values, turned = torch.linalg.eigh(half.T @ (weights.double()[:, None] * half))
    order = values.abs().argsort(descending=True)[:keep]
    mix = ((vectors / root) @ turned[:, order]).T.to(blocks[0].dtype)
    found = blocks[0].new_zeros(len(mix), blocks[0].shape[1])
    for part, block in zip(mix.split([len(block) for block in blocks], 1), blocks, strict=True):
        found.addmm_(part, block)
    return found, values[order].to(weights.dtype)
