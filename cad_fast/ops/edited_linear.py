"""edited_linear: a linear layer in which every group of rows has its own sparse edit."""

import itertools
from typing import Any

import torch
from torch import Tensor

from cad_fast.ops import backends, checks, reference
from cad_fast.ops.define import define
from cad_fast.ops.edit_masks import edit_products
from cad_fast.ops.edit_plans import NO_PLAN, edit_plan
from cad_fast.ops.registry import OPS


def edited_linear(
    x: Tensor,
    weight: Tensor,
    rows: Tensor,
    offsets: Tensor,
    indices: Tensor,
    factors: Tensor,
    bias: Tensor | None = None,
    transposed: bool = False,
    *,
    backend: str | None = None,
) -> Tensor:
    """Apply a linear layer to groups of rows, every group under its own sparse edit of the weight.

    y[r] = x[r] @ W_g.T + bias for the rows r of group g, where W_g is the weight with the elements of the group's
    entries multiplied by their factors. Factor 0 removes an element exactly, even if it is infinite or NaN. With
    `transposed`, y[r] = x[r] @ W_g.

    Sums are float32. The order of a row's sum depends on the sizes of the weight and on `transposed` alone; not on the
    other rows and groups, nor on the number of threads.

    What is prepared from `indices` and `factors` is remembered with these tensors. Changes in place are seen if torch
    counts them: not through `.data`, nor through memory shared with other libraries. Changes of the weight always are.

    Differentiable in `x`, `bias` and `weight`; the gradient of the weight is computed by plain torch, one group at a
    time.

    Args:
        x: [r, k], float32, bfloat16 or float16; any strides. With `transposed` [r, n].
        weight: [n, k], dtype of `x`; any strides.
        rows: [groups + 1], int64, on the CPU, ascending from 0 to r: group g owns the rows from rows[g] to rows[g + 1].
        offsets: [groups + 1], int64, on the CPU, ascending from 0 to e: group g's edit is the entries from offsets[g]
            to offsets[g + 1]. Groups may have no rows and no entries.
        indices: [e], int64: elements of the flattened weight, strictly ascending within a group.
        factors: [e], float32: what these elements are multiplied by.
        bias: [n], dtype of `x`, or None. Must be None with `transposed`.
        transposed: multiply by W_g rather than by its transpose.
        backend: "auto", "hopper", "cuda", "triton", "vendor", "native" or "reference"; None means the one in
            force (`use_backend`). With "vendor" the order of sums is the library's.

    Returns:
        [r, n], dtype of `x`. With `transposed` [r, k].

    Raises:
        TypeError: an argument is no tensor or has another dtype.
        ValueError: shapes or devices do not fit; `rows` or `offsets` do not ascend as stated; an index is out of range
            or not above the one before it; there is a bias with `transposed`.
        RuntimeError: the backend asked for cannot run.
    """
    return _op(x, weight, rows, offsets, indices, factors, bias, transposed, backend)


@define("edited_linear", checks.linear.empty_result, direct=True)
def _op(
    x: Tensor,
    weight: Tensor,
    rows: Tensor,
    offsets: Tensor,
    indices: Tensor,
    factors: Tensor,
    bias: Tensor | None,
    transposed: bool,
) -> None:
    checks.linear.check_operands(x, weight, bias, 2, transposed)
    checks.edits.check_shapes(x, rows, offsets, indices, factors)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, rows, offsets, indices, factors, _, ctx.transposed, ctx.backend = inputs
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight, rows, offsets, indices, factors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, rows, offsets, indices, factors = ctx.saved_tensors
    edit = (rows, offsets, indices, factors)
    for_x, for_weight, _, _, _, _, for_bias, *_ = ctx.needs_input_grad
    return (
        _op(grad, weight, *edit, None, not ctx.transposed, ctx.backend) if for_x else None,
        _weight_gradient(grad, x, weight, *edit, ctx.transposed) if for_weight else None,
        *[None] * 4,
        grad.sum(0) if for_bias else None,
        None,
        None,
    )


def _weight_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    rows: Tensor,
    offsets: Tensor,
    indices: Tensor,
    factors: Tensor,
    transposed: bool,
) -> Tensor:
    """The sum over the groups of the weight's gradient in them, the edited elements times their factors."""
    total = torch.zeros(weight.numel(), dtype=torch.float32, device=weight.device)
    outputs, inputs = (x, grad) if transposed else (grad, x)
    bounds, ends = rows.tolist(), offsets.tolist()
    for group, (first, last) in enumerate(itertools.pairwise(bounds)):
        entries = slice(ends[group], ends[group + 1])
        part = (outputs[first:last].mT @ inputs[first:last]).flatten().float()
        total = total + part.index_put((indices[entries],), part[indices[entries]] * factors[entries])
    return total.to(weight.dtype).reshape(weight.shape)


_op.custom_op.register_autograd(_backward, setup_context=_setup_context)


def _native_edited_linear(
    x: Tensor,
    weight: Tensor,
    rows: Tensor,
    offsets: Tensor,
    indices: Tensor,
    factors: Tensor,
    bias: Tensor | None,
    transposed: bool,
) -> Tensor:
    plan = edit_plan(weight, offsets, indices, factors, transposed)
    x, weight, bias = x.contiguous(), weight.contiguous(), checks.linear.contiguous(bias)
    rows, offsets, indices, factors = (t.contiguous() for t in (rows, offsets, indices, factors))
    n, k = weight.shape
    y = torch.empty((x.shape[0], k if transposed else n), dtype=x.dtype)
    backends.native.module().edited_linear(
        x.data_ptr(),
        weight.data_ptr(),
        rows.data_ptr(),
        offsets.data_ptr(),
        indices.data_ptr(),
        factors.data_ptr(),
        checks.linear.address(bias),
        y.data_ptr(),
        x.shape[0],
        rows.shape[0] - 1,
        indices.shape[0],
        n,
        k,
        transposed,
        x.dtype == torch.bfloat16,
        *(NO_PLAN if plan is None else plan.addresses()),
    )
    panels = "tiles" if backends.native.has_tiles(x.dtype) else "packed panels"
    if not len(indices):
        way = f"{panels}, dense"
    elif plan is None:
        way = f"{panels}, patched for each group"
    else:
        way = f"{panels}, patched for each group by a plan"
    OPS["edited_linear"].ways[way] += 1
    return y


def _hopper_edited_linear(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    *edit, bias, transposed = rest
    y = torch.empty((x.shape[0], weight.shape[1 if transposed else 0]), dtype=x.dtype, device=x.device)
    for edited, words, factors, runs in edit_products(weight, edit, x.shape[0]):
        backends.hopper.linear_of_runs(x, edited, words, bias, factors, transposed, runs, y)
    return y


def _triton_edited_linear(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    checks.edits.check_values(x, weight, *rest[:3])
    return backends.triton.of("edited_linear", products=True)(x, weight, *rest)


def _vendor_edited_linear(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    checks.edits.check_values(x, weight, *rest[:3])
    return backends.vendor.edited_linear(x, weight, *rest)


def _reference_edited_linear(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    checks.edits.check_values(x, weight, *rest[:3])  # the native version checks them on its way
    return reference.edited_linear(x, weight, *rest)


_op.implement(
    kernels=("edited_linear", "edit_plan"),
    hopper=_hopper_edited_linear,
    cuda=backends.cuda.edited_linear,
    triton=_triton_edited_linear,
    vendor=_vendor_edited_linear,
    native=_native_edited_linear,
    reference=_reference_edited_linear,
)
