"""gated_linear: a linear layer whose input columns each variant multiplies by gates of its own."""

from typing import Any

import torch
from torch import Tensor

from cad_fast.ops import backends, checks, dispatch, reference
from cad_fast.ops.define import define
from cad_fast.ops.registry import OPS


def gated_linear(
    x: Tensor,
    weight: Tensor,
    gates: Tensor,
    bias: Tensor | None = None,
    transposed: bool = False,
    *,
    backend: str | None = None,
) -> Tensor:
    """Apply a linear layer to the rows of each variant, the columns of every variant's input times its own gates.

    y[v] = (x[v] * gates[v]) @ weight.T + bias, each gate serving a block of k / c neighbouring columns. A gate of 0
    drops its columns exactly, even if x is infinite or NaN there (the weight must be finite). A gate of 1 gives the
    plain product. With `transposed`, y[v] = (x[v] @ weight) * gates[v].

    The gated input is rounded to the dtype, sums are float32. A row's result does not depend on what the other rows and
    variants hold; nor on how many there are and on the number of threads, except as torch's own product does, which is
    the native one in bfloat16 and with `transposed`.

    Differentiable in `x`, `weight`, `gates` and `bias`.

    Args:
        x: [variants, rows, k], float32, bfloat16 or float16; any strides. With `transposed` [variants, rows, n].
        weight: [n, k], dtype of `x`; any strides.
        gates: [variants, c], dtype of `x`, where c divides k: one for each block of k / c columns.
        bias: [n], dtype of `x`, or None. Must be None with `transposed`.
        transposed: multiply by the weight rather than by its transpose, and gate the result.
        backend: "auto", "triton", "vendor", "native" or "reference"; None means the one in
            force (`use_backend`).

    Returns:
        [variants, rows, n], dtype of `x`. With `transposed` [variants, rows, k].

    Raises:
        TypeError: an argument is no tensor or has another dtype.
        ValueError: shapes or devices do not fit, or there is a bias with `transposed`.
        RuntimeError: the backend asked for cannot run.
    """
    return _op(x, weight, gates, bias, transposed, backend)


@define("gated_linear", checks.linear.empty_result, direct=True)
def _op(x: Tensor, weight: Tensor, gates: Tensor, bias: Tensor | None, transposed: bool) -> None:
    _, k = checks.linear.check_operands(x, weight, bias, 3, transposed)
    checks.gates.check_gates(gates, x)
    blocks = gates.shape[1]
    if k % blocks if blocks else k:
        raise ValueError(f"gates must be [variants, c] with c a divisor of {k}, got {checks.shape(gates)}")


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, gates, _, ctx.transposed, ctx.backend = inputs
    ctx.save_for_backward(x if ctx.needs_input_grad[1] or ctx.needs_input_grad[2] else None, weight, gates)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, gates = ctx.saved_tensors
    for_x, for_weight, for_gates, for_bias, *_ = ctx.needs_input_grad
    of_x = of_weight = of_gates = None
    if for_gates:
        # The product before the gates is what their gradient needs, so that of x is made of it too.
        columns, other = (x @ weight, grad) if ctx.transposed else (grad @ weight, x)
        of_gates = _of_gates(columns, other, gates)
    if for_x and for_gates and not ctx.transposed:
        of_x = _apply(columns, _each(gates, weight))
    elif for_x:
        of_x = _op(grad, weight, gates, None, not ctx.transposed, ctx.backend)
    if for_weight:
        outputs, inputs = (x, grad) if ctx.transposed else (grad, x)
        of_weight = outputs.flatten(0, 1).mT @ reference.gated(inputs, _each(gates, weight), -1).flatten(0, 1)
    return of_x, of_weight, of_gates, grad.sum((0, 1)) if for_bias else None, None, None


def _apply(x: Tensor, gates: Tensor) -> Tensor:
    """X [V, R, K] times its gates [V, K], exactly zero where a gate is 0; x may be changed in place."""
    if torch.is_grad_enabled() or not dispatch.untraced(x, gates):
        return reference.gated(x, gates, -1)
    if x.is_contiguous() and backends.native.why_not_run("gated_linear", (x, gates)) is None:
        backends.native.gate_channels(x, x, gates, None, x.shape[1], last=True)
        return x
    factors = reference.along(gates, x, -1)
    return x.mul_(factors).masked_fill_(factors == 0, 0)


def _of_gates(columns: Tensor, other: Tensor, gates: Tensor) -> Tensor:
    """The sum of their products over rows and blocks of columns, [variants, c]."""
    products = (columns * other).sum(1)
    return products.unflatten(-1, (gates.shape[1], -1)).sum(-1) if gates.numel() else torch.zeros_like(gates)


def _each(gates: Tensor, weight: Tensor) -> Tensor:
    """One gate per column, [variants, k]."""
    if gates.shape[1] == weight.shape[1]:
        return gates
    return gates.repeat_interleave(weight.shape[1] // max(1, gates.shape[1]), 1)


_op.custom_op.register_autograd(_backward, setup_context=_setup_context)


def _native_gated_linear(x: Tensor, weight: Tensor, gates: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    each = _each(gates, weight)
    if transposed:
        y = (x.flatten(0, 1) @ weight).view(*x.shape[:2], weight.shape[1])
        backends.native.gate_channels(y, y, each, None, x.shape[1], last=True)
        return y
    x = x.contiguous()
    by_product = x.dtype == torch.float32  # oneDNN's product in bfloat16 is the faster one
    OPS["gated_linear"].ways["own product" if by_product else "torch's product, of an input gated before"] += 1
    if by_product:
        return _by_product(x, weight.contiguous(), each, bias)
    gated = torch.empty_like(x)
    backends.native.gate_channels(x, gated, each, None, x.shape[1], last=True)
    return torch.nn.functional.linear(gated, weight.contiguous(), checks.linear.contiguous(bias))


def _by_product(x: Tensor, weight: Tensor, gates: Tensor, bias: Tensor | None) -> Tensor:
    gates, bias = gates.float().contiguous(), checks.linear.contiguous(bias)
    n, k = weight.shape
    variants, rows, _ = x.shape
    y = torch.empty((variants, rows, n), dtype=x.dtype)
    backends.native.module().gated_linear(
        x.data_ptr(),
        weight.data_ptr(),
        gates.data_ptr(),
        checks.linear.address(bias),
        y.data_ptr(),
        variants,
        rows,
        n,
        k,
        x.dtype == torch.bfloat16,
    )
    return y


_op.implement(
    kernels=("gated_linear", "gate_channels"),
    triton=backends.triton.of("gated_linear", products=True),
    vendor=backends.vendor.gated_linear,
    native=_native_gated_linear,
    reference=reference.gated_linear,
)
