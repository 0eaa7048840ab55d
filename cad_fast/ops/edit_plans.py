"""Where the entries of edits lie in the packed panels of the native edited_linear, found once and remembered."""

from typing import NamedTuple

import torch
from torch import Tensor

from cad_fast import remembered
from cad_fast.ops import backends, checks


class EditPlan(NamedTuple):
    """Entries sorted by cells, of which a panel has one for each block of the sum.

    starts: [groups, cells + 1], int32: the entries of a group's cells; places: [entries], 16 bits: where they lie in
    their cell; factors: [entries], float32, in the same order, or None if all are 0.
    """

    starts: Tensor
    places: Tensor
    factors: Tensor | None

    def addresses(self) -> tuple[int, int, int, int]:
        """What the kernel takes of it: three addresses, and the number of cells."""
        return (
            self.starts.data_ptr(),
            self.places.data_ptr(),
            checks.linear.address(self.factors),
            self.starts.shape[1] - 1,
        )


NO_PLAN = (0, 0, 0, 0)
"""What the kernel takes if it is to find the entries on its way."""


def edit_plan(weight: Tensor, offsets: Tensor, indices: Tensor, factors: Tensor, transposed: bool) -> EditPlan | None:
    """The plan of an edit, remembered with `indices` and `factors`; None where nothing would be kept.

    To make a plan takes longer than to find the entries once. The kernels for the tile unit patch the weight itself.

    Raises:
        ValueError: `offsets` do not ascend from 0 to the number of entries, or indices are out of range, or do not
            ascend strictly within a group.
    """
    if indices.is_inference() or factors.is_inference() or remembered.limit() == 0:
        return None
    if backends.native.has_tiles(weight.dtype):
        return None
    module = backends.native.module()
    bfloat16 = weight.dtype == torch.bfloat16
    inner, outer = weight.shape if transposed else weight.shape[::-1]
    key = (inner, outer, transposed, module.bfloat16_capability() if bfloat16 else None, *offsets.tolist())

    def make() -> EditPlan:
        groups, entries = len(offsets) - 1, len(indices)
        starts = torch.empty((groups, module.edit_plan_cells(inner, outer, bfloat16) + 1), dtype=torch.int32)
        places, in_order = torch.empty(entries, dtype=torch.int16), torch.empty(entries)
        given = offsets.contiguous(), indices.contiguous(), factors.contiguous()
        addresses = [tensor.data_ptr() for tensor in (*given, starts, places, in_order)]
        module.edit_plan(*addresses, groups, entries, inner, outer, transposed, bfloat16)
        return EditPlan(starts, places, in_order if in_order.any() else None)

    return remembered.remembered("a plan of edits", [indices, factors], key, make)
