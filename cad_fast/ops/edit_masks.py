"""Edits as masks with a factor each, for kernels that know masks; and weights patched for edits that are none.

What is found for a call has been checked when it was made. A call with an edit that was there before looks up two
things, and checks no values.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cad_fast.ops import backends, checks, layout, reference
from cad_fast.ops.backends.hopper import Runs
from cad_fast.remembered import remembered


class EditMasks(NamedTuple):
    """The masks of groups whose entries all have the same factor.

    words: [masks, n, width], int32, the last of them without bits; factors: [masks], float32, or None if all are 0;
    of_group: which mask is a group's, the last where it has no entries, -1 where its factors differ.
    """

    words: Tensor
    factors: Tensor | None
    of_group: tuple[int, ...]

    def patched(self) -> Sequence[int]:
        """The groups that have no mask."""
        return [g for g, mask in enumerate(self.of_group) if mask < 0] if -1 in self.of_group else ()

    def only(self, group: int) -> list[int]:
        """The last mask, which has no bits, for the rows of one group; the others are left as they are."""
        return [0 if other == group else -1 for other in range(len(self.of_group))]


def edit_masks(
    shape: Sequence[int], offsets: Sequence[int], indices: Tensor, factors: Tensor, channels_last: bool = False
) -> EditMasks:
    """The masks of the groups of an edit, remembered with `indices` and `factors`.

    Args:
        shape: of the weight.
        offsets: [groups + 1]: group g has the entries from offsets[g] to offsets[g + 1].
        indices: [entries], int64, flat into the weight.
        factors: [entries], float32.
        channels_last: the words are for the weight [N, C, kh, kw] as [N, kh, kw, C].

    Raises:
        ValueError: `offsets` do not ascend from 0 to the number of entries, or indices are out of range, or do not
            ascend strictly within a group.
    """

    def make() -> EditMasks:
        checks.edits.check_entries(math.prod(shape), offsets, indices)
        return _make(shape, offsets, indices, factors, channels_last)

    return remembered("masks of edits", [indices, factors], (*shape, channels_last, *offsets), make)


def edit_runs(rows: Sequence[int], of_group: Sequence[int], count: int, area: int, device: torch.device) -> Runs:
    """The runs of an edit's groups, remembered by all of these numbers.

    Args:
        rows: [groups + 1]: group g has the rows from rows[g] to rows[g + 1].
        of_group: [groups]: which mask is a group's, or -1 where none of its rows are to be computed.
        count: how many rows there are.
        area: how many rows of the runs each of these is; the positions of an image.
        device: where the runs are to lie.

    Raises:
        ValueError: `rows` do not ascend from 0 to `count`.
    """

    def make() -> Runs:
        checks.edits.check_bounds("rows", rows, count)
        return backends.hopper.runs_of([row * area for row in rows], of_group, device)

    return remembered("runs of an edit", (), (count, area, *rows, *of_group), make, device)


def edit_products(
    weight: Tensor, edit: Sequence[Tensor], count: int, area: int = 1, channels_last: bool = False
) -> Iterator[tuple[Tensor, Tensor, Tensor | None, Runs]]:
    """The products that compute all rows of an edit: the weight, its words, their factors, and which rows.

    One is of all groups that have masks. Each other group has one of its own, with a weight of its own and no bits.

    Args:
        weight: as the operator has it.
        edit: its rows, offsets, indices and factors, as the operator has them.
        count: how many rows there are.
        area: how many rows of the product each of these is; the positions of an image.
        channels_last: as for ``edit_masks``.
    """
    rows, offsets, indices, factors = edit
    bounds, ends = rows.tolist(), offsets.tolist()
    masks = edit_masks(weight.shape, ends, indices, factors, channels_last)
    yield weight, masks.words, masks.factors, edit_runs(bounds, masks.of_group, count, area, indices.device)
    for group in masks.patched():
        patched = patched_weight(weight, ends[group], ends[group + 1], indices, factors)
        runs = edit_runs(bounds, masks.only(group), count, area, indices.device)
        yield patched, masks.words[-1:], None, runs


def _make(
    shape: Sequence[int], offsets: Sequence[int], indices: Tensor, factors: Tensor, channels_last: bool
) -> EditMasks:
    rows, columns, device, groups = shape[0], math.prod(shape[1:]), indices.device, len(offsets) - 1
    ends = torch.tensor(offsets, device=device)
    group = torch.bucketize(torch.arange(len(indices), device=device), ends[1:], right=True)
    first = factors[ends[:-1].clamp(max=max(len(factors) - 1, 0))] if len(factors) else factors.new_zeros(groups)
    unlike = torch.zeros(groups, dtype=torch.int64, device=device)
    unlike.index_add_(0, group, (factors != first[group]).long())
    differs, first_factors = unlike.tolist(), first.tolist()
    empty = [offsets[g] == offsets[g + 1] for g in range(groups)]
    masked = [g for g in range(groups) if not differs[g] and not empty[g]]
    of_group = [-1 if differs[g] else len(masked) if empty[g] else masked.index(g) for g in range(groups)]
    width = checks.bits.words_for(columns)
    words = torch.zeros((len(masked) + 1) * rows * width, dtype=torch.int32, device=device)
    mask = torch.tensor(of_group, device=device)[group]
    chosen = mask >= 0
    elements = indices[chosen]
    if channels_last:
        elements = layout.place_channels_last(elements, shape)
    row, column = elements // max(columns, 1), elements % max(columns, 1)
    bits = torch.ones((), dtype=torch.int32, device=device) << (column % 32).to(torch.int32)
    place = (mask[chosen] * rows + row) * width + column // 32
    words.index_add_(0, place, bits)  # each bit once: the sum is their union
    own_factors = [first_factors[g] for g in masked]
    of_masks = torch.tensor([*own_factors, 0.0], device=device) if any(own_factors) else None
    return EditMasks(words.view(-1, rows, width), of_masks, tuple(of_group))


def patched_weight(weight: Tensor, begin: int, end: int, indices: Tensor, factors: Tensor) -> Tensor:
    """The weight, contiguous, under the entries from `begin` to `end`.

    Made in every call: adapters are merged into a weight through `weight.data`, which nothing counts.
    """
    return reference.edited(weight, indices[begin:end], factors[begin:end]).contiguous()
