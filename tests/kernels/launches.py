"""Calls that launch each Triton kernel, for compilation ahead of time: sizes of SD 1.4's layers, on the CPU."""

import torch
from torch import Tensor

from cad_fast.kernels import masked_linear


def _linear(rows: int, dtype: torch.dtype, transposed: bool) -> tuple[Tensor, Tensor, Tensor]:
    weight = torch.zeros(1280, 640, dtype=dtype)
    return torch.zeros(4, rows, 1280 if transposed else 640, dtype=dtype), weight, torch.zeros(4, 1280, 20).int()


def launch_masked_linear(rows: int, dtype: torch.dtype, precision: str, other: bool) -> None:
    """Plain with a bias, or the `other`: transposed with factors."""
    bias, factors = (None, torch.zeros(4)) if other else (torch.zeros(1280, dtype=dtype), None)
    masked_linear.run(*_linear(rows, dtype, other), bias, factors, other, precision=precision)


PRODUCTS = {"masked_linear": launch_masked_linear}
"""Kernels with a product, by operator: called with rows per variant, dtype, precision, and which of two ways."""
