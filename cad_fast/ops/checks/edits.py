"""What the operators with sparse edits share: checks of rows, offsets, indices and factors."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cad_fast.ops.checks import check
from cad_fast.remembered import remembered


def check_shapes(x: Tensor, rows: Any, offsets: Any, indices: Any, factors: Any) -> None:
    """Require rows and offsets [groups + 1] on the CPU, indices and factors [entries] on the device of x."""
    if _fit(x, rows, offsets, indices, factors):
        return  # as nearly always: to say what does not fit takes longer
    for name, value in (("rows", rows), ("offsets", offsets), ("indices", indices)):
        check.tensor(name, value, (torch.int64,))
    check.tensor("factors", factors, (torch.float32,))
    if rows.dim() != 1 or len(rows) < 2:
        raise ValueError(f"rows must be [groups + 1] with at least one group, got {check.shape(rows)}")
    check.exact_shape("offsets", offsets, rows.shape)
    if indices.dim() != 1:
        raise ValueError(f"indices must be [entries], got {check.shape(indices)}")
    check.exact_shape("factors", factors, indices.shape)
    for name, value in (("rows", rows), ("offsets", offsets)):
        if value.device.type != "cpu":
            raise ValueError(f"{name} must be on cpu, got {value.device}")
    check.same_device("indices", indices, "x", x)
    check.same_device("factors", factors, "x", x)


def _fit(x: Tensor, rows: Any, offsets: Any, indices: Any, factors: Any) -> bool:
    for value in (rows, offsets, indices, factors):
        if not isinstance(value, Tensor):
            return False
    groups, entries, device = rows.shape, indices.shape, x.device
    return (
        len(groups) == 1 == len(entries)
        and groups[0] >= 2
        and offsets.shape == groups
        and factors.shape == entries
        and rows.dtype == offsets.dtype == indices.dtype == torch.int64
        and factors.dtype == torch.float32
        and rows.device.type == "cpu" == offsets.device.type
        and indices.device == device == factors.device
    )


def remembers(indices: Tensor) -> bool:
    """Whether these indices are looked at once: on the CPU that is cheap, and other libraries may change them."""
    return indices.device.type != "cpu"


def check_values(x: Tensor, weight: Tensor, rows: Tensor, offsets: Tensor, indices: Tensor) -> None:
    """Require rows and offsets that ascend from 0, and indices in range that ascend strictly within an edit.

    Indices on a GPU are checked again only after a change: to look at them means to wait for the GPU.
    """
    cuts, elements = offsets.tolist(), weight.numel()
    check_bounds("offsets", cuts, indices.shape[0])
    check_bounds("rows", rows.tolist(), x.shape[0])
    if remembers(indices):
        key = (elements, *cuts)
        remembered("the check of indices", [indices], key, lambda: _check_indices(indices, cuts, elements))
    else:
        _check_indices(indices, cuts, elements)


def check_bounds(name: str, values: Sequence[int], last: int) -> None:
    """Require numbers that ascend from 0 to the last."""
    listed = [*values]
    if listed[0] != 0 or listed[-1] != last or listed != sorted(listed):
        raise ValueError(f"{name} must ascend from 0 to {last}")


def check_entries(elements: int, offsets: Sequence[int], indices: Tensor) -> None:
    """Require offsets that ascend from 0, and indices below `elements` that ascend strictly within a group."""
    check_bounds("offsets", offsets, indices.shape[0])
    _check_indices(indices, offsets, elements)


def _check_indices(indices: Tensor, offsets: Sequence[int], elements: int) -> None:
    outside = (indices < 0) | (indices >= elements)
    disordered = torch.zeros_like(outside)
    disordered[1:] = indices.diff() <= 0
    firsts = [offset for offset in offsets if offset < indices.shape[0]]
    disordered[torch.tensor(firsts, dtype=torch.int64, device=indices.device)] = False
    bad = (outside | disordered).nonzero().flatten()
    if bad.numel() == 0:
        return
    position = int(bad[0])
    entry = f"indices[{position}] = {int(indices[position])}"
    if outside[position]:
        raise ValueError(f"{entry} is out of range for a weight of {elements} elements")
    raise ValueError(f"{entry} must be above the index before it in its group, {int(indices[position - 1])}")
