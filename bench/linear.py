"""masked_linear, edited_linear and masked_linear_scores against what one would write without them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cad_fast import ops
from cad_fast.row_engine.gates import keep_columns, scale_columns

from .shapes import EDIT_FRACTION, MASK_FRACTION, VARIANTS, LinearShape
from .timing import Contenders

ONEDNN = "dense oneDNN"
TORCH = "dense torch"


def _inputs(shape: LinearShape, rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(VARIANTS, rows, shape.k, generator=generator).to(dtype)
    weight = (torch.randn(shape.n, shape.k, generator=generator) / shape.k**0.5).to(dtype)
    return x, weight


def dense(x: Tensor, weight: Tensor) -> Contenders:
    """The same rows through the plain weight: torch's linear, and oneDNN's called directly in float32."""
    flat = x.flatten(0, -2)
    calls = {TORCH: lambda: F.linear(flat, weight)}
    if x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        calls[ONEDNN] = lambda: torch.ops.mkldnn._linear_pointwise(flat, weight, None, "none", [], "")
    return calls


def masked_linear(shape: LinearShape, rows: int, dtype: torch.dtype) -> tuple[Contenders, dict[str, Any]]:
    """Random masks of 5% in each of 16 variants."""
    x, weight = _inputs(shape, rows, dtype)
    mask = torch.rand(VARIANTS, shape.n, shape.k, generator=torch.Generator().manual_seed(1)) < MASK_FRACTION
    words = ops.pack_bits(mask)
    keep = (~mask).to(dtype)

    def loop() -> Tensor:
        return torch.stack([F.linear(x[v], weight * keep[v]) for v in range(VARIANTS)])

    def in_place() -> Tensor:
        outputs = []
        for v in range(VARIANTS):
            edited = weight.clone()
            edited[mask[v]] = 0
            outputs.append(F.linear(x[v], edited))
        return torch.stack(outputs)

    calls = {
        "cad_fast": lambda: ops.masked_linear(x, weight, words),
        **dense(x, weight),
        "loop over W*M": loop,
        "bmm on W*M": lambda: torch.bmm(x, (weight * keep).mT),
        "vmap": lambda: torch.func.vmap(lambda k, rows: F.linear(rows, weight * k))(keep, x),
        "copy, edit, linear": in_place,
    }
    facts = {"mask_bytes": words.nbytes, "float_mask_bytes": keep.nbytes, "rows": VARIANTS * rows}
    require_right(calls["cad_fast"](), loop(), x.dtype)
    return calls, facts


def edited_linear(shape: LinearShape, rows: int, dtype: torch.dtype) -> tuple[Contenders, dict[str, Any]]:
    """16 different edits, each of 1% of the weights, with factor 0."""
    x, weight = _inputs(shape, rows, dtype)
    generator = torch.Generator().manual_seed(1)
    count = max(1, int(EDIT_FRACTION * weight.numel()))
    each = [torch.randperm(weight.numel(), generator=generator)[:count].sort().values for _ in range(VARIANTS)]
    offsets = torch.arange(VARIANTS + 1) * count
    indices = torch.cat(each)
    factors = torch.zeros(len(indices))
    ends = torch.arange(VARIANTS + 1) * rows
    flat = x.flatten(0, 1)
    editable = weight.clone()

    def in_place() -> Tensor:
        outputs = []
        view = editable.view(-1)
        for v in range(VARIANTS):
            originals = view[each[v]]
            view[each[v]] = 0
            outputs.append(F.linear(x[v], editable))
            view[each[v]] = originals
        return torch.cat(outputs)

    def loop() -> Tensor:
        copies = (weight.flatten().index_fill(0, each[v], 0).view_as(weight) for v in range(VARIANTS))
        return torch.cat([F.linear(x[v], copy) for v, copy in enumerate(copies)])

    calls = {
        "cad_fast": lambda: ops.edited_linear(flat, weight, ends, offsets, indices, factors),
        **dense(x, weight),
        "edit in place, undo": in_place,
        "loop over copies": loop,
    }
    calls |= _peft(x, weight)
    require_right(calls["cad_fast"](), loop(), x.dtype)
    return calls, {"entries": len(indices), "rows": VARIANTS * rows}


def _peft(x: Tensor, weight: Tensor) -> Contenders:
    """PEFT's way to serve different adapters in one batch: one LoRA of rank 4 per group of rows, adapter_names per row.

    Another function than an edit of single weights (PEFT has none such in a mixed batch), at the price PEFT asks.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        return {}
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=x.dtype)
    model = torch.nn.Sequential(linear)
    names = [f"edit{v}" for v in range(VARIANTS)]
    for name in names:
        model = inject_adapter_in_model(LoraConfig(r=4, target_modules=["0"]), model, name)
    layer = model[0].eval()
    per_row = [name for name in names for _ in range(x.shape[1])]
    flat = x.flatten(0, 1)

    @torch.no_grad()
    def call() -> Tensor:
        return layer(flat, adapter_names=per_row)

    return {"PEFT LoRA r4, mixed batch": call}


def gated_linear(shape: LinearShape, rows: int, dtype: torch.dtype) -> tuple[Contenders, dict[str, Any]]:
    """5% of the neurons removed in each of 16 variants, against torch's pass over the input and its product."""
    x, weight = _inputs(shape, rows, dtype)
    keep = torch.rand(VARIANTS, shape.k, generator=torch.Generator().manual_seed(1)) >= MASK_FRACTION
    gates, flat = keep.to(dtype), x.flatten(0, 1)

    calls = {
        "cad_fast": lambda: ops.gated_linear(x, weight, gates).flatten(0, 1),
        **dense(x, weight),
        "torch.where, linear": lambda: F.linear(keep_columns(flat, keep), weight),
        "multiply, linear": lambda: F.linear(scale_columns(flat, gates, 1), weight),
        "loop over scaled weights": lambda: torch.cat([F.linear(x[v], weight * gates[v]) for v in range(VARIANTS)]),
    }
    require_right(calls["cad_fast"](), calls["torch.where, linear"](), x.dtype)
    return calls, {"rows": VARIANTS * rows}


def masked_linear_scores(shape: LinearShape, rows: int, dtype: torch.dtype) -> tuple[Contenders, dict[str, Any]]:
    """The attribution's backward; "dense torch" is the plain weight gradient of all rows at once."""
    x, weight = _inputs(shape, rows, dtype)
    grad = torch.randn(VARIANTS, rows, shape.n, generator=torch.Generator().manual_seed(2)).to(dtype)
    mask = torch.rand(VARIANTS, shape.n, shape.k, generator=torch.Generator().manual_seed(1)) < MASK_FRACTION
    words = ops.pack_bits(mask)

    def fused() -> tuple[Tensor, Tensor]:
        kept, ablated = torch.zeros(2, shape.n, shape.k)
        ops.masked_linear_scores(grad, x, weight, words, kept, ablated)
        return kept, ablated

    def loop() -> tuple[Tensor, Tensor]:
        kept, ablated = torch.zeros(2, shape.n, shape.k)
        for v in range(VARIANTS):
            scores = weight * (grad[v].T @ x[v])
            kept += torch.where(mask[v], 0, scores)
            ablated += torch.where(mask[v], scores, 0)
        return kept, ablated

    def materialised() -> tuple[Tensor, Tensor]:
        scores = weight * torch.bmm(grad.mT, x)
        return torch.where(mask, 0, scores).sum(0), torch.where(mask, scores, 0).sum(0)

    calls = {
        "cad_fast": fused,
        TORCH: lambda: grad.flatten(0, 1).T @ x.flatten(0, 1),
        "loop over variants": loop,
        "bmm, where, sum": materialised,
    }
    for ours, theirs in zip(fused(), loop(), strict=True):
        require_right(ours, theirs, x.dtype)
    return calls, {"rows": VARIANTS * rows}


def require_right(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> None:
    """A wrong kernel gets no figure."""
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    error = (ours.float() - theirs.float()).norm() / theirs.float().norm()
    if not error <= tolerance:
        raise AssertionError(f"the kernel's result differs from the plain loop's by {error:.2g}, no figure is given")
