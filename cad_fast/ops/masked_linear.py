"""masked_linear: a linear layer under many ablations at once."""

from typing import Any

import torch
from torch import Tensor

from cad_fast.ops import backends, checks, reference
from cad_fast.ops.define import define
from cad_fast.ops.registry import OPS


def masked_linear(
    x: Tensor,
    weight: Tensor,
    words: Tensor,
    bias: Tensor | None = None,
    factors: Tensor | None = None,
    transposed: bool = False,
    *,
    backend: str | None = None,
) -> Tensor:
    """Apply a linear layer to the rows of each variant, every variant with its own set of weights ablated.

    y[v] = x[v] @ W_v.T + bias, where W_v is the weight with the elements multiplied by factors[v] whose bit is set in
    words[v]. Factor 0 removes them exactly, even if they are infinite or NaN. With `transposed`, y[v] = x[v] @ W_v.

    Sums are float32. The order of a row's sum depends on the sizes of the weight, on `transposed`, and on how many rows
    a variant has; not on what the other rows and variants hold, nor on the number of threads.

    Differentiable in `x`, `bias` and `weight`; the gradient of the weight is computed by plain torch, one variant at a
    time.

    Args:
        x: [variants, rows, k], float32, bfloat16 or float16; any strides. With `transposed` [variants, rows, n].
        weight: [n, k], dtype of `x`; any strides.
        words: [variants, n, ceil(k / 32)], int32: bit i of word j of a row is set if its element 32 * j + i is ablated
            (`pack_bits`). Bits behind element k - 1 are ignored.
        bias: [n], dtype of `x`, or None. Must be None with `transposed`.
        factors: [variants], float32: what each variant's ablated weights are multiplied by. None means 0.
        transposed: multiply by W_v rather than by its transpose.
        backend: "auto", "hopper", "cuda", "triton", "vendor", "native" or "reference"; None means the one in
            force (`use_backend`).

    Returns:
        [variants, rows, n], dtype of `x`. With `transposed` [variants, rows, k].

    Raises:
        TypeError: an argument is no tensor or has another dtype.
        ValueError: shapes or devices do not fit, or there is a bias with `transposed`.
        RuntimeError: the backend asked for cannot run.
    """
    return _op(x, weight, words, bias, factors, transposed, backend)


@define("masked_linear", checks.linear.empty_result, direct=True)
def _op(
    x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None, factors: Tensor | None, transposed: bool
) -> None:
    n, k = checks.linear.check_operands(x, weight, bias, 3, transposed)
    variants = x.shape[0]
    checks.tensor("words", words, (torch.int32,))
    checks.exact_shape("words", words, (variants, n, checks.bits.words_for(k)))
    checks.same_device("words", words, "x", x)
    if factors is not None:
        checks.tensor("factors", factors, (torch.float32,))
        checks.exact_shape("factors", factors, (variants,))
        checks.same_device("factors", factors, "x", x)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, words, _, factors, ctx.transposed, ctx.backend = inputs
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight, words, factors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, words, factors = ctx.saved_tensors
    for_x, for_weight, _, for_bias, *_ = ctx.needs_input_grad
    return (
        _op(grad, weight, words, None, factors, not ctx.transposed, ctx.backend) if for_x else None,
        _weight_gradient(grad, x, weight, words, factors, ctx.transposed) if for_weight else None,
        None,
        grad.sum((0, 1)) if for_bias else None,
        None,
        None,
        None,
    )


def _weight_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, words: Tensor, factors: Tensor | None, transposed: bool
) -> Tensor:
    """The sum over the variants of what they multiply the weight by, times its gradient in them."""
    total = torch.zeros_like(weight, dtype=torch.float32)
    for variant in range(len(words)):
        keep = reference.keep(words[variant : variant + 1], weight, None if factors is None else factors[variant, None])
        outputs, inputs = (x, grad) if transposed else (grad, x)
        total = total + keep[0] * (outputs[variant].mT @ inputs[variant])
    return total.to(weight.dtype)


_op.custom_op.register_autograd(_backward, setup_context=_setup_context)


def _native_masked_linear(
    x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None, factors: Tensor | None, transposed: bool
) -> Tensor:
    x, weight, words = x.contiguous(), weight.contiguous(), words.contiguous()
    bias, factors = checks.linear.contiguous(bias), checks.linear.contiguous(factors)
    n, k = weight.shape
    variants, rows, _ = x.shape
    y = torch.empty((variants, rows, k if transposed else n), dtype=x.dtype)
    way = backends.native.module().masked_linear(
        x.data_ptr(),
        weight.data_ptr(),
        words.data_ptr(),
        checks.linear.address(bias),
        checks.linear.address(factors),
        y.data_ptr(),
        variants,
        rows,
        n,
        k,
        transposed,
        x.dtype == torch.bfloat16,
    )
    OPS["masked_linear"].ways[way] += 1
    return y


_op.implement(
    hopper=backends.hopper.masked_linear,
    cuda=backends.cuda.masked_linear,
    triton=backends.triton.of("masked_linear", products=True),
    vendor=backends.vendor.masked_linear,
    native=_native_masked_linear,
    reference=reference.masked_linear,
)
