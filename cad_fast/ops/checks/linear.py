"""What the linear operators share: checks of x, weight and bias, and addresses for the native kernels."""

from typing import Any

import torch
from torch import Tensor

from cad_fast.ops.checks import check

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_operands(x: Any, weight: Any, bias: Any, dims: int, transposed: bool) -> tuple[int, int]:
    """Check x of so many dimensions against a weight [n, k], and the bias; returns the sizes (n, k)."""
    check.tensor("x", x, DTYPES)
    check.tensor("weight", weight, (x.dtype,))
    if weight.dim() != 2:
        raise ValueError(f"weight must be [n, k], got {check.shape(weight)}")
    n, k = weight.shape
    inner = n if transposed else k
    if x.dim() != dims or x.shape[-1] != inner:
        leading = "variants, rows" if dims == 3 else "rows"
        raise ValueError(f"x must be [{leading}, {inner}] for a weight {check.shape(weight)}, got {check.shape(x)}")
    if bias is not None:
        if transposed:
            raise ValueError("bias must be None if transposed")
        check.tensor("bias", bias, (x.dtype,))
        check.exact_shape("bias", bias, (n,))
        check.same_device("bias", bias, "x", x)
    check.same_device("weight", weight, "x", x)
    return n, k


def empty_result(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    """Memory for the result; `transposed` is the last of the arguments."""
    return x.new_empty((*x.shape[:-1], weight.shape[1 if rest[-1] else 0]))


def address(tensor: Tensor | None) -> int:
    """Where the data of a contiguous tensor lie; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """The tensor itself if it is contiguous, else a copy that is."""
    return None if tensor is None else tensor.contiguous()
