"""Weights that are not plain floating-point tensors: torchao's and other subclasses, integers, 8-bit floats."""

from __future__ import annotations

import torch
from torch import Tensor

PLAIN_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def stored_as(weight: Tensor) -> str | None:
    """How a weight is quantised, by its dtype or its class; None for a plain tensor of 16 bits or more."""
    kind = type(weight.data)
    if kind is not Tensor:
        return kind.__name__
    return None if weight.dtype in PLAIN_DTYPES else str(weight.dtype)


def plain_values(weight: Tensor) -> Tensor:
    """The values of a weight as a plain tensor. Raises TypeError naming the class that does not give them."""
    data = weight.detach()
    if type(weight.data) is Tensor:
        return data
    try:
        values = data.dequantize()
    except Exception as error:
        raise TypeError(f"weights of the class {type(weight.data).__name__} do not give their values") from error
    return torch.as_tensor(values)


def require_plain(name: str, weight: Tensor, doing: str) -> None:
    """Raise TypeError, naming the layer and how it is stored, for quantised weights that cannot be ``doing``."""
    kind = stored_as(weight)
    if kind is not None:
        raise TypeError(
            f"{name} has quantised weights ({kind}), which cannot be {doing}: load the model in float32, bfloat16 or "
            "float16. Recording works as it is"
        )
