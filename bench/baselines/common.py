"""What the baselines share: their interface, and how their checkpoints are written."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor

from cad_fast.files import write_tensors


class Baseline(Protocol):
    """A method that erases a concept of the embedded model, with its settings as fields of a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str:
        """What files and tables call it."""

    def weights(self, pipeline: Any, concept: str) -> dict[str, Tensor]:
        """Return the weights that it changes, by their names in the denoiser. The pipeline is left as it was."""


def write_checkpoint(baseline: Baseline, pipeline: Any, concept: str, folder: Path) -> Path:
    """Write ``folder``/``concept``.safetensors, which ``load_pipeline(denoiser_weights=)`` reads.

    The header says which method and settings made it.
    """
    metadata = {"method": baseline.name, "concept": concept, "settings": asdict(baseline)}
    return write_tensors(folder / f"{concept}.safetensors", baseline.weights(pipeline, concept), metadata)
