"""Argument checks shared by the operators: each error names the argument and says what was expected."""

from typing import Any

import torch
from torch import Tensor


def tensor(name: str, value: Any, dtypes: tuple[torch.dtype, ...]) -> None:
    """Require a tensor of one of the dtypes with at least one dimension."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        expected = " or ".join(str(dtype) for dtype in dtypes)
        raise TypeError(f"{name} must have dtype {expected}, got {value.dtype}")
    if value.dim() == 0:
        raise ValueError(f"{name} must have at least one dimension, got a scalar")


def size(name: str, value: Any) -> None:
    """Require an int that is not negative (a symbolic one passes)."""
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{name} must not be negative, got {value}")


def shape(value: Tensor) -> str:
    """The shape as error messages show it."""
    return f"[{', '.join(map(str, value.shape))}]"


def exact_shape(name: str, value: Tensor, expected: tuple[int, ...]) -> None:
    """Require a shape."""
    if value.shape != expected:
        raise ValueError(f"{name} must be [{', '.join(map(str, expected))}], got {shape(value)}")


def same_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Require a tensor on the device of another."""
    if value.device != other.device:
        raise ValueError(f"{name} must be on {other.device} like {other_name}, got {value.device}")
