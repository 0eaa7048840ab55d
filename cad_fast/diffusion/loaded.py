"""How a pipeline was loaded, kept by its denoiser for those who note where results come from."""

from __future__ import annotations

import weakref
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from ..choices import Offload
from .denoisers import PipelinePart, denoiser_of, denoisers_in
from .dtypes import dtype_name, dtype_of


@dataclass(frozen=True)
class Loading:
    """How a pipeline was loaded.

    ``dtype`` is that of every part, except of those named in ``quantised``, which keep their own. ``stored`` is the
    dtype that the denoiser's file has, None where it holds no floating point. ``reason`` says why ``dtype`` was chosen.
    """

    name: str
    dtype: str
    stored: str | None
    reason: str
    variant: str | None = None
    revision: str | None = None
    device: str = "cpu"
    offload: Offload = "none"
    quantised: tuple[str, ...] = ()
    denoiser_weights: str | None = None
    part: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "quantised": list(self.quantised)}

    def provenance(self) -> dict[str, Any]:
        """``to_dict`` without names of files and folders, which mean nothing on another machine."""
        return {key: value for key, value in self.to_dict().items() if key not in ("name", "denoiser_weights")}

    def __str__(self) -> str:
        where = self.device if self.offload == "none" else f"{self.device}, offload {self.offload}"
        more = f", variant {self.variant}" if self.variant else ""
        more += f", revision {self.revision}" if self.revision else ""
        more += f", of its denoisers {self.part}" if self.part else ""
        more += f"; {', '.join(self.quantised)} quantised, in dtypes of their own" if self.quantised else ""
        return f"{self.name}: {self.dtype} on {where}{more} ({self.reason})"


# Kept by the denoiser, which attributions, recordings and evaluations all know.
_LOADINGS: weakref.WeakKeyDictionary[nn.Module, Loading] = weakref.WeakKeyDictionary()


def note_loading(pipeline: Any, loading: Loading) -> None:
    """Keep how a pipeline was loaded, by the denoiser that is meant, or by each that it has."""
    part = isinstance(pipeline, PipelinePart)
    for denoiser in [denoiser_of(pipeline)] if part else denoisers_in(pipeline).values():
        _LOADINGS[denoiser] = loading


def loading_of(pipeline: Any) -> Loading | None:
    """How ``load_pipeline`` loaded this pipeline, or the denoiser of it; None for one that was loaded otherwise."""
    return _LOADINGS.get(denoiser_of(pipeline))


def model_facts(pipeline: Any) -> dict[str, Any]:
    """What provenance says of the model at hand, as JSON: the dtype it computes in, and how it was loaded."""
    loading = loading_of(pipeline)
    facts = {} if loading is None else loading.provenance()
    return {**facts, "dtype": dtype_name(dtype_of(denoiser_of(pipeline)))}
