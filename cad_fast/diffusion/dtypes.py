"""The dtype of a model: what its parts have, what they should get, and what is said when they do not fit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from .denoisers import denoiser_of

# Stored in one of these, a model is not made for float32.
HALF = ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


def dtype_name(dtype: torch.dtype | None) -> str | None:
    """``float32`` for torch.float32, and so on."""
    return None if dtype is None else str(dtype).removeprefix("torch.")


def dtype_of(module: nn.Module) -> torch.dtype | None:
    """The floating dtype that most of a module's parameters have; None when none is floating."""
    sizes: dict[torch.dtype, int] = {}
    for parameter in module.parameters():
        if parameter.is_floating_point():
            sizes[parameter.dtype] = sizes.get(parameter.dtype, 0) + parameter.numel()
    return max(sizes, key=lambda dtype: sizes[dtype]) if sizes else None


def as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A torch.dtype, or the one of that name."""
    return dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype)


def dtype_keyword(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The argument of ``from_pretrained`` that sets the dtype: older diffusers call it ``torch_dtype``."""
    import diffusers
    from packaging.version import Version

    return {"dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype": dtype}


def choose_dtype(dtype: str | torch.dtype, stored: str | None, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype that all parts get and, in words, why; ``stored`` is that of the denoiser's file."""
    if dtype != "auto":
        return as_dtype(dtype), "as asked for"
    if stored is None or stored not in HALF:
        known = "its dtype cannot be read from its files" if stored is None else f"stored in {stored}"
        return torch.float32, known
    if device.type != "cpu":
        half = torch.float16 if stored == "float16" else torch.bfloat16
        return half, f"stored in {stored}"
    if bfloat16_is_fast():
        return torch.bfloat16, f"stored in {stored}, and this CPU computes bfloat16 fast"
    return torch.float32, f"stored in {stored}, in which this CPU is slow"


def bfloat16_is_fast() -> bool:
    """Whether this CPU has instructions for products of bfloat16 (AVX-512 BF16 or AMX)."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in probes)


def _unequal(pipeline: Any) -> str | None:
    """The dtypes of the denoiser and of what encodes its conditions, in words; None where they are equal."""
    denoiser = denoiser_of(pipeline)
    dtypes: dict[str, torch.dtype] = {}
    for name, part in getattr(pipeline, "components", {}).items():
        if isinstance(part, nn.Module) and (part is denoiser or "encoder" in name):
            dtype = dtype_of(part)
            if dtype is not None:
                dtypes[name] = dtype
    if len(set(dtypes.values())) < 2:
        return None
    return ", ".join(f"{name} is {dtype}" for name, dtype in dtypes.items())


@contextlib.contextmanager
def one_dtype(pipeline: Any) -> Iterator[None]:
    """Within, torch's complaint about a denoiser fed with another dtype becomes one that says how to load the model.

    Whether unequal parts fit is known only to the pipeline, some of which convert what the text encoders give; so the
    first denoiser call decides, before any step is done. Raises ValueError.
    """
    try:
        yield
    except RuntimeError as error:
        parts = _unequal(pipeline) if "type" in str(error) else None
        if parts is None:
            raise
        wanted = dtype_name(dtype_of(denoiser_of(pipeline)))
        raise ValueError(
            f"the parts of this pipeline have different dtypes ({parts}), and its denoiser cannot be given what they "
            f"make: load it with one dtype, as cad_fast.load_pipeline does, or use pipeline.to(torch.{wanted})"
        ) from error
