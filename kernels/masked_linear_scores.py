"""masked_linear_scores in Triton: the gradient of a tile of the weight, variant by variant, split by the bits."""

import triton
import triton.language as tl
from torch import Tensor

from cad_fast.kernels import configs
from cad_fast.kernels.tiles import spread


@triton.jit
def masked_linear_scores_kernel(
    grad,
    x,
    weight,
    words,
    kept,
    ablated,
    variants,
    rows,
    n,
    k,
    width,
    grad_variant_stride,
    grad_row_stride,
    grad_stride,
    x_variant_stride,
    x_row_stride,
    x_stride,
    weight_row_stride,
    weight_stride,
    kept_row_stride,
    kept_stride,
    ablated_row_stride,
    ablated_stride,
    PRECISION: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BR: tl.constexpr,
):
    at_n = tl.program_id(0) * BN + tl.arange(0, BN)
    at_k = tl.program_id(1) * BK + tl.arange(0, BK)
    word = tl.program_id(1) * (BK // 32) + tl.arange(0, BK // 32)
    inside_n, inside_k = at_n < n, at_k < k
    inside = inside_n[:, None] & inside_k[None, :]
    wide_n, wide_k = at_n.to(tl.int64), at_k.to(tl.int64)
    of_kept = tl.zeros((BN, BK), dtype=tl.float32)
    of_ablated = tl.zeros((BN, BK), dtype=tl.float32)
    words_at = words + wide_n[:, None] * width + word[None, :]
    one = tl.full((), 1, tl.int64)
    for _ in range(variants):
        gradient = tl.zeros((BN, BK), dtype=tl.float32)
        for start in range(0, rows, BR):
            row = (start + tl.arange(0, BR)).to(tl.int64)
            row_inside = row < rows
            grad_at = grad + row[None, :] * grad_row_stride + wide_n[:, None] * grad_stride
            x_at = x + row[:, None] * x_row_stride + wide_k[None, :] * x_stride
            a = tl.load(grad_at, mask=inside_n[:, None] & row_inside[None, :], other=0.0)
            b = tl.load(x_at, mask=row_inside[:, None] & inside_k[None, :], other=0.0)
            gradient = tl.dot(a, b, gradient, input_precision=PRECISION)
        packed = tl.load(words_at, mask=inside_n[:, None] & (word < width)[None, :], other=0)
        wide, places = spread(packed, BN, BK, False)
        is_ablated = ((wide >> places) & 1) != 0
        of_kept += tl.where(is_ablated, 0.0, gradient)
        of_ablated += tl.where(is_ablated, gradient, 0.0)
        words_at += one * n * width
        grad += one * grad_variant_stride
        x += one * x_variant_stride
    element = tl.load(weight + wide_n[:, None] * weight_row_stride + wide_k[None, :] * weight_stride, mask=inside)
    element = element.to(tl.float32)
    kept_at = kept + wide_n[:, None] * kept_row_stride + wide_k[None, :] * kept_stride
    tl.store(kept_at, tl.load(kept_at, mask=inside) + element * of_kept, mask=inside)
    ablated_at = ablated + wide_n[:, None] * ablated_row_stride + wide_k[None, :] * ablated_stride
    tl.store(ablated_at, tl.load(ablated_at, mask=inside) + element * of_ablated, mask=inside)


def run(
    grad: Tensor, x: Tensor, weight: Tensor, words: Tensor, kept: Tensor, ablated: Tensor, *, precision: str = "ieee"
) -> None:
    """See `cad_fast.ops.masked_linear_scores`; `precision` is how float32 is multiplied: ieee, tf32 or tf32x3."""
    (variants, rows, n), k = grad.shape, x.shape[2]
    if 0 in (variants, rows, n, k):
        return
    words = words.contiguous()
    config = configs.scores(x, precision)
    masked_linear_scores_kernel[(triton.cdiv(n, config.block_n), triton.cdiv(k, config.block_k))](
        grad,
        x,
        weight,
        words,
        kept,
        ablated,
        variants,
        rows,
        n,
        k,
        words.shape[2],
        *grad.stride(),
        *x.stride(),
        *weight.stride(),
        *kept.stride(),
        *ablated.stride(),
        PRECISION=configs.dot_precision(x, precision),
        **config.blocks,
        **config.options,
    )
