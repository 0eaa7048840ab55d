"""masked_conv2d and edited_conv2d against what one would write without them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cad_fast import ops
from cad_fast.row_engine.gates import keep_filters, scale_filters

from .linear import TORCH, require_right
from .shapes import EDIT_FRACTION, MASK_FRACTION, VARIANTS, ConvShape
from .timing import Contenders


def _inputs(shape: ConvShape, images: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, int]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(VARIANTS, images, shape.c, shape.size, shape.size, generator=generator).to(dtype)
    fan_in = shape.c * shape.kernel**2
    weight = torch.randn(shape.n, shape.c, shape.kernel, shape.kernel, generator=generator) / fan_in**0.5
    return x, weight.to(dtype), shape.kernel // 2


def masked_conv2d(shape: ConvShape, images: int, dtype: torch.dtype) -> tuple[Contenders, dict[str, Any]]:
    """Random masks of 5% in each of 16 variants."""
    x, weight, padding = _inputs(shape, images, dtype)
    mask = torch.rand(VARIANTS, *weight.shape, generator=torch.Generator().manual_seed(1)) < MASK_FRACTION
    words = ops.pack_bits(mask.flatten(2))
    keep = (~mask).to(dtype)

    def loop() -> Tensor:
        return torch.stack([F.conv2d(x[v], weight * keep[v], padding=padding) for v in range(VARIANTS)])

    def grouped() -> Tensor:
        stacked = (weight * keep).flatten(0, 1)
        y = F.conv2d(x.transpose(0, 1).flatten(1, 2), stacked, padding=padding, groups=VARIANTS)
        return y.unflatten(1, (VARIANTS, -1)).transpose(0, 1)

    calls = {
        "cad_fast": lambda: ops.masked_conv2d(x, weight, words, padding=padding),
        TORCH: lambda: F.conv2d(x.flatten(0, 1), weight, padding=padding),
        "loop over W*M": loop,
        "one grouped conv": grouped,
        "vmap": lambda: torch.func.vmap(lambda k, rows: F.conv2d(rows, weight * k, padding=padding))(keep, x),
    }
    require_right(calls["cad_fast"](), loop(), dtype)
    return calls, {"mask_bytes": words.nbytes, "float_mask_bytes": keep.nbytes, "rows": VARIANTS * images}


def edited_conv2d(shape: ConvShape, images: int, dtype: torch.dtype) -> tuple[Contenders, dict[str, Any]]:
    """16 different edits, each of 1% of the weights, with factor 0."""
    x, weight, padding = _inputs(shape, images, dtype)
    generator = torch.Generator().manual_seed(1)
    count = max(1, int(EDIT_FRACTION * weight.numel()))
    each = [torch.randperm(weight.numel(), generator=generator)[:count].sort().values for _ in range(VARIANTS)]
    indices = torch.cat(each)
    offsets, ends = torch.arange(VARIANTS + 1) * count, torch.arange(VARIANTS + 1) * images
    factors = torch.zeros(len(indices))
    flat = x.flatten(0, 1)
    editable = weight.clone()

    def in_place() -> Tensor:
        outputs = []
        view = editable.view(-1)
        for v in range(VARIANTS):
            originals = view[each[v]]
            view[each[v]] = 0
            outputs.append(F.conv2d(x[v], editable, padding=padding))
            view[each[v]] = originals
        return torch.cat(outputs)

    calls = {
        "cad_fast": lambda: ops.edited_conv2d(flat, weight, ends, offsets, indices, factors, padding=padding),
        TORCH: lambda: F.conv2d(flat, weight, padding=padding),
        "edit in place, undo": in_place,
    }
    require_right(calls["cad_fast"](), in_place(), dtype)
    return calls, {"entries": len(indices), "rows": VARIANTS * images}


def gated_conv2d(shape: ConvShape, images: int, dtype: torch.dtype) -> tuple[Contenders, dict[str, Any]]:
    """5% of the filters removed in each of 16 variants, against torch's convolution and its pass over the output."""
    x, weight, padding = _inputs(shape, images, dtype)
    bias = torch.randn(shape.n, generator=torch.Generator().manual_seed(2)).to(dtype)
    keep = torch.rand(VARIANTS, shape.n, generator=torch.Generator().manual_seed(1)) >= MASK_FRACTION
    gates, flat = keep.to(dtype), x.flatten(0, 1)

    def plain() -> Tensor:
        return F.conv2d(flat, weight, bias, padding=padding)

    calls = {
        "cad_fast": lambda: ops.gated_conv2d(x, weight, gates, bias, padding=padding).flatten(0, 1),
        TORCH: plain,
        "conv, torch.where": lambda: keep_filters(plain(), keep, bias),
        "conv, multiply, add": lambda: scale_filters(plain(), gates, bias),
    }
    require_right(calls["cad_fast"](), calls["conv, torch.where"](), dtype)
    return calls, {"rows": VARIANTS * images}
