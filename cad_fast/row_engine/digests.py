"""Tell rows of tensors apart, and the same rows again, by a few numbers each."""

from __future__ import annotations

import torch
from torch import Tensor

# How far what is the same may be apart, relative to its norm: far above rounding, far below another row.
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def digest(x: Tensor) -> Tensor:
    """Three numbers [M, 3] that tell rows [M, ...] apart, the last the norm of each, which says what is rounding.

    A tensor of one dimension is one row.
    """
    flat = x.reshape(len(x), -1).float() if x.dim() > 1 else x.reshape(1, -1).float()
    angles = torch.arange(flat.shape[1], device=x.device, dtype=torch.float32)
    numbers = flat @ torch.stack([angles.cos(), (1.7 * angles).sin()], 1)
    return torch.cat([numbers, flat.norm(dim=1, keepdim=True)], 1)


def alike(first: Tensor, second: Tensor, dtype: torch.dtype) -> bool:
    """Whether two tensors, computed in ``dtype``, are the same but for rounding."""
    if first.shape != second.shape:
        return False
    # What is not finite is so in both, or makes the rest differ.
    first, second = (each.double().nan_to_num(0.0, 0.0, 0.0) for each in (first, second))
    apart = (first - second).norm()
    return bool(apart <= TOLERANCES.get(dtype, 5e-2) * torch.maximum(first.norm(), second.norm()))
