"""What the operators with sparse edits share: checks of rows, offsets, indices and factors."""

from typing import Any

import torch
from torch import Tensor

from cad_fast.ops.checks import check
from cad_fast.remembered import remembered


def check_shapes(x: Tensor, rows: Any, offsets: Any, indices: Any, factors: Any) -> None:
    """Require rows and offsets [groups + 1] on the CPU, indices and factors [entries] on the device of x."""
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


def remembers(indices: Tensor) -> bool:
    """Whether these indices are looked at once: on the CPU that is cheap, and other libraries may change them."""
    return indices.device.type != "cpu"


def check_values(x: Tensor, weight: Tensor, rows: Tensor, offsets: Tensor, indices: Tensor) -> None:
    """Require rows and offsets that ascend from 0, and indices in range that ascend strictly within an edit.

    Indices on a GPU are checked again only after a change: to look at them means to wait for the GPU.
    """
    cuts = offsets.tolist()
    for name, values, last in (("offsets", cuts, indices.shape[0]), ("rows", rows.tolist(), x.shape[0])):
        if values[0] != 0 or values[-1] != last or values != sorted(values):
            raise ValueError(f"{name} must ascend from 0 to {last}")
    elements = weight.numel()
    if remembers(indices):
        key = (elements, tuple(cuts))
        remembered("the check of indices", [indices], key, lambda: _check_indices(indices, offsets, elements))
    else:
        _check_indices(indices, offsets, elements)


def _check_indices(indices: Tensor, offsets: Tensor, elements: int) -> None:
    outside = (indices < 0) | (indices >= elements)
    disordered = torch.zeros_like(outside)
    disordered[1:] = indices.diff() <= 0
    disordered[offsets[offsets < indices.shape[0]].to(indices.device)] = False
    bad = (outside | disordered).nonzero().flatten()
    if bad.numel() == 0:
        return
    position = int(bad[0])
    what = f"indices[{position}] = {int(indices[position])}"
    if outside[position]:
        raise ValueError(f"{what} is out of range for a weight of {elements} elements")
    raise ValueError(f"{what} must be above the index before it in its group, {int(indices[position - 1])}")
