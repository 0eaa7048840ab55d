"""masked_linear_scores: sums of weight times gradient over many variants of a linear layer, by kept and ablated."""

from typing import Any

import torch
from torch import Tensor

from cad_fast.ops import backends, checks, reference
from cad_fast.ops.define import define

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def masked_linear_scores(
    grad: Tensor, x: Tensor, weight: Tensor, words: Tensor, kept: Tensor, ablated: Tensor, *, backend: str | None = None
) -> None:
    """Add every variant's weight * (grad^T x) to `kept` where the variant keeps the weight, to `ablated` where not.

    grad^T x is the gradient of the weight, summed over the rows of a variant; it is never held for more than a few
    elements at a time. Sums are in float32: first over rows, then over variants, then multiplied by the weight.

    Args:
        grad: [V, R, N], float32, bfloat16 or float16; any strides. The gradient of the layer's output.
        x: [V, R, K], dtype of `grad`; any strides. The layer's input.
        weight: [N, K], dtype of `grad`; any strides.
        words: [V, N, ceil(K / 32)], int32; any strides. Bit i of word j is set where the variant ablates the weight in
            column 32 * j + i; bits behind column K - 1 are ignored.
        kept: [N, K], float32; any strides. Updated in place.
        ablated: [N, K], float32; any strides, other memory than `kept`. Updated in place.
        backend: "auto", "triton", "native" or "reference"; None means the one in force (`use_backend`).

    Returns:
        None.

    Raises:
        TypeError: an argument is no tensor or has another dtype.
        ValueError: a shape does not fit the others, or a tensor is on another device than `grad`.
        RuntimeError: the backend asked for cannot run.

    Source: Nguyen et al., "Unveiling Concept Attribution in Diffusion Models" (arXiv 2412.02542), whose first-order
    scores are the case of one variant that ablates nothing.
    """
    _op(grad, x, weight, words, kept, ablated, backend)


def _empty(*_: Any) -> None:
    return None


@define("masked_linear_scores", _empty, mutates=("kept", "ablated"))
def _op(grad: Tensor, x: Tensor, weight: Tensor, words: Tensor, kept: Tensor, ablated: Tensor) -> None:
    checks.tensor("grad", grad, _DTYPES)
    if grad.dim() != 3:
        raise ValueError(f"grad must have shape [V, R, N], got {list(grad.shape)}")
    checks.tensor("weight", weight, (grad.dtype,))
    if weight.dim() != 2 or weight.shape[0] != grad.shape[2]:
        raise ValueError(f"weight must have shape [{grad.shape[2]}, K] to fit grad, got {list(weight.shape)}")
    variants, rows, n = grad.shape
    k = weight.shape[1]
    for name, value, dtype, shape in (
        ("x", x, grad.dtype, (variants, rows, k)),
        ("words", words, torch.int32, (variants, n, checks.bits.words_for(k))),
        ("kept", kept, torch.float32, (n, k)),
        ("ablated", ablated, torch.float32, (n, k)),
    ):
        checks.tensor(name, value, (dtype,))
        if value.shape != shape:
            raise ValueError(f"{name} must have shape {list(shape)}, got {list(value.shape)}")
    for name, value in (("x", x), ("weight", weight), ("words", words), ("kept", kept), ("ablated", ablated)):
        if value.device != grad.device:
            raise ValueError(f"{name} must be on {grad.device} like grad, got {value.device}")


def _native_masked_linear_scores(
    grad: Tensor, x: Tensor, weight: Tensor, words: Tensor, kept: Tensor, ablated: Tensor
) -> None:
    inputs = [tensor.contiguous() for tensor in (grad, x, weight, words)]
    outputs = [tensor.contiguous() for tensor in (kept, ablated)]
    addresses = [tensor.data_ptr() for tensor in (*inputs, *outputs)]
    backends.native.module().masked_linear_scores(*addresses, *grad.shape, x.shape[2], grad.dtype == torch.bfloat16)
    for given, updated in zip((kept, ablated), outputs, strict=True):
        if updated is not given:
            given.copy_(updated)


_op.implement(
    triton=backends.triton.of("masked_linear_scores", products=True),
    native=_native_masked_linear_scores,
    reference=reference.masked_linear_scores,
)
