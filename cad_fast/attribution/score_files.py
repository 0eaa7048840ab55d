"""Scores as files: all of them or the largest, in float32 or in float16 with a scale per module."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..choices import SCORE_DTYPES
from ..components.space import ComponentSpace
from .curvature import Curvature

# Where the largest of a module's scores comes to lie, below float16's largest number, 65504.
_HIGHEST = 2.0**15
_SMALLEST = 2.0**-24


def check_options(dtype: str, top: int | None) -> None:
    """Raises ValueError for what cannot be saved."""
    if dtype not in SCORE_DTYPES:
        raise ValueError(f"scores are saved in one of {', '.join(SCORE_DTYPES)}, got {dtype!r}")
    if top is not None and top < 1:
        raise ValueError(f"top is {top}, expected at least 1")


def packed(
    space: ComponentSpace,
    values: Tensor,
    standard_error: Tensor | None,
    curvature: Curvature | None,
    dtype: str,
    top: int | None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Make the tensors of a file of scores.

    Returns:
        The tensors, and what provenance says of how they are stored.

    Raises:
        ValueError: as ``check_options``.
    """
    check_options(dtype, top)
    tensors: dict[str, Tensor] = {}
    dropped: list[str] = []
    if top is not None and top < len(values):
        indices = largest(values.abs(), top)
        tensors |= {"values": values[indices], "indices": indices.to(torch.int32)}
        known = {"standard_error": standard_error, "curvature": curvature}
        dropped = [name for name, value in known.items() if value is not None]
    else:
        top, indices = None, None
        tensors["values"] = values
        if standard_error is not None:
            tensors["standard_error"] = standard_error
        if curvature is not None:
            tensors |= {f"curvature.{name}": tensor for name, tensor in curvature.tensors().items()}
    if dtype == "float16":
        bounds = _bounds(space, indices)
        for name in ("values", "standard_error"):
            if name in tensors:
                tensors[name], tensors[f"{name}.scale"] = _scaled(tensors[name], bounds)
    return tensors, {"dtype": dtype, "top": top, "dropped": dropped}


def unpacked(tensors: Mapping[str, Tensor], space: ComponentSpace) -> dict[str, Any]:
    """Read what ``packed`` made tensors of, as keyword arguments of ``Scores``, or with ``indices`` of ``TopScores``.

    Raises:
        ValueError, KeyError: they do not fit the space or one another.
    """
    indices = tensors.get("indices")
    bounds = _bounds(space, indices)
    parts = {name: _plain(tensors, name, bounds) for name in ("values", "standard_error") if name in tensors}
    if indices is not None:
        return {"indices": indices, "kept": parts["values"]}
    curve = {name[10:]: tensor for name, tensor in tensors.items() if name.startswith("curvature.")}
    return {
        "values": parts["values"],
        "standard_error": parts.get("standard_error"),
        "curvature": Curvature(**curve) if curve else None,
    }


def checked_provenance(value: Any) -> dict[str, Any]:
    """What a file says of where its scores come from.

    Raises:
        ValueError: it, or what it says of held-out checks, is not what edits and reports are made from.
    """
    if not isinstance(value, dict):
        raise ValueError("its provenance is no object")
    trust = value.get("trust", [])
    if not isinstance(trust, list) or not all(isinstance(check, dict) for check in trust):
        raise ValueError("'trust' of its provenance is no list of objects")
    for check in trust:
        numbers = [check.get(name) for name in ("fraction", "pearson")]
        interval = check.get("pearson_interval")
        numbers += interval if isinstance(interval, list) and len(interval) == 2 else [None]
        if (
            not all(type(number) in (int, float) and abs(number) <= 1.001 for number in numbers)  # 1, but for rounding
            or not check["fraction"] > 0
        ):
            raise ValueError("'trust' of its provenance has a check without a fraction, a correlation or its interval")
    return value


def _bounds(space: ComponentSpace, indices: Tensor | None) -> list[int]:
    """Where each module's entries begin in the stored tensor, and where the last one's end."""
    offsets = [*(entry.offset for entry in space.leading), space.n]
    if indices is None:
        return offsets
    return torch.searchsorted(indices.to(torch.int64), torch.tensor(offsets)).tolist()


def _scaled(values: Tensor, bounds: list[int]) -> tuple[Tensor, Tensor]:
    """float16 values and float32 scales [modules], powers of two: values * scale is within rounding of what was given.

    Nothing overflows, and what would become zero keeps its sign as the smallest number there is.
    """
    stored, scales = torch.empty(values.shape, dtype=torch.float16), torch.ones(len(bounds) - 1)
    for number, (low, high) in enumerate(itertools.pairwise(bounds)):
        part = values[low:high]
        highest = float(part.abs().max()) if high > low else 0.0
        if highest > 0:
            # In float32 a scale has to be a normal number, so that the division is exact.
            scales[number] = 2.0 ** max(-126, torch.frexp(torch.tensor(highest / _HIGHEST))[1].item())
        scaled = part / scales[number]
        small = (scaled != 0) & (scaled.abs() < _SMALLEST)
        stored[low:high] = torch.where(small, scaled.sign() * _SMALLEST, scaled).to(torch.float16)
    return stored, scales


def _plain(tensors: Mapping[str, Tensor], name: str, bounds: list[int]) -> Tensor:
    values = tensors[name]
    if values.dtype == torch.float32:
        return values
    scales = tensors[f"{name}.scale"]
    if values.dtype != torch.float16 or scales.shape != (len(bounds) - 1,) or len(values) != bounds[-1]:
        raise ValueError(f"{name} is {values.dtype} {list(values.shape)} with {list(scales.shape)} scales")
    plain = values.to(torch.float32)
    for (low, high), scale in zip(itertools.pairwise(bounds), scales, strict=True):
        plain[low:high] *= scale
    return plain


def largest(values: Tensor, k: int) -> Tensor:
    """Sorted indices int64 [k] of the ``k`` largest of ``values`` [n]; of equal ones, those of lower index.

    By their k-th largest, which takes a copy of the values; sorting takes several of them, and more time.
    """
    n = len(values)
    if k >= n:
        return torch.arange(n)
    if k < 1:
        return torch.empty(0, dtype=torch.int64)
    import numpy as np

    threshold = float(np.partition(values.numpy(), n - k)[n - k])
    above = (values > threshold).nonzero().flatten()
    equal = (values == threshold).nonzero().flatten()[: k - len(above)]
    return torch.cat([above, equal]).sort().values
