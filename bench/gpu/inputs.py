"""Random layers, masks and edits, made on the device that they are used on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cad_fast.ops.checks.bits import WORD_BITS, words_for

from ..shapes import EDIT_FRACTION, MASK_FRACTION


class Random:
    """Random tensors on a device, from a generator of their own."""

    def __init__(self, device: torch.device, dtype: torch.dtype, seed: int = 0) -> None:
        self.device, self.dtype = device, dtype
        self.generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=self.generator, device=self.device)).to(self.dtype)

    def mask(self, *shape: int, fraction: float = MASK_FRACTION) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.device) < fraction

    def words(self, *shape: int, k: int, fraction: float = MASK_FRACTION) -> Tensor:
        """Packed masks [*shape, words for k], the bits behind element k - 1 as random as the others."""
        words = torch.zeros((*shape, words_for(k)), dtype=torch.int32, device=self.device)
        for bit in range(WORD_BITS):  # bit by bit: no mask of all elements
            words |= self.mask(*words.shape, fraction=fraction).int() << bit
        return words


class Edits(NamedTuple):
    """Edits of groups of rows, as the edited operators take them; `each` are the indices by group."""

    rows: Tensor
    offsets: Tensor
    indices: Tensor
    factors: Tensor
    each: list[Tensor]


def edits(
    rows: Sequence[int],
    elements: int,
    device: torch.device,
    factors: Sequence[float] = (0.0,),
    fraction: float = EDIT_FRACTION,
    seed: int = 0,
    without: Sequence[int] = (),
) -> Edits:
    """An edit per group, each of other elements of a weight.

    Args:
        rows: how many rows each group has.
        elements: of the weight.
        device: where indices and factors go.
        factors: of the entries, in turns.
        fraction: which share of the weight an edit names.
        seed: draws other elements.
        without: groups that have no entries.
    """
    generator = torch.Generator().manual_seed(seed)
    step = max(1, round(1 / fraction))
    each = []
    for group in range(len(rows)):
        count = 0 if group in without else -(-elements // step)
        indices = torch.randint(0, step, (count,), generator=generator) + step * torch.arange(count)
        each.append(indices[indices < elements])
    offsets = torch.tensor([0, *map(len, each)]).cumsum(0)
    bounds = torch.tensor([0, *rows]).cumsum(0)
    values = torch.tensor(factors)[torch.arange(int(offsets[-1])) % len(factors)]
    moved = [indices.to(device) for indices in each]
    return Edits(bounds, offsets, torch.cat(moved), values.to(device), moved)
