"""cad_fast: component attribution in diffusion models, fast.

Score which weights of a diffusion model express a concept, remove or amplify them, and measure what it costs the
other concepts (CAD, arXiv 2412.02542).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from . import zoo
    from .ablation import Ablation
    from .attribution import Attributor, Scores, attribute
    from .budget import Budget
    from .components import ComponentSpace
    from .dial import strip
    from .edit_search import EditSearch
    from .edits import Edit, EditManager, amplify, compose, erase, load_edit, refine
    from .evaluation import compare, evaluate
    from .loading import load_pipeline
    from .objectives import CallableObjective, ConceptErasure, DenoisingLoss
    from .ops import backend_report
    from .recording import Recording, record, record_images, renoise, with_base
    from .row_engine import rows

# Where each public name lives; imported on first use, since torch and diffusers take seconds.
_HOME = {
    "Ablation": "ablation",
    "Attributor": "attribution",
    "Budget": "budget",
    "CallableObjective": "objectives",
    "ComponentSpace": "components",
    "ConceptErasure": "objectives",
    "DenoisingLoss": "objectives",
    "Edit": "edits",
    "EditManager": "edits",
    "EditSearch": "edit_search",
    "Recording": "recording",
    "Scores": "attribution",
    "amplify": "edits",
    "attribute": "attribution",
    "backend_report": "ops",
    "compare": "evaluation",
    "compose": "edits",
    "erase": "edits",
    "evaluate": "evaluation",
    "load_edit": "edits",
    "load_pipeline": "loading",
    "record": "recording",
    "record_images": "recording",
    "refine": "edits",
    "renoise": "recording",
    "rows": "row_engine",
    "strip": "dial",
    "with_base": "recording",
    "zoo": "zoo",
}

__all__ = [
    "Ablation",
    "Attributor",
    "Budget",
    "CallableObjective",
    "ComponentSpace",
    "ConceptErasure",
    "DenoisingLoss",
    "Edit",
    "EditManager",
    "EditSearch",
    "Recording",
    "Scores",
    "__version__",
    "amplify",
    "attribute",
    "backend_report",
    "compare",
    "compose",
    "erase",
    "evaluate",
    "load_edit",
    "load_pipeline",
    "record",
    "record_images",
    "refine",
    "renoise",
    "rows",
    "strip",
    "with_base",
    "zoo",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_HOME[name]}", __name__)
    return module if name == _HOME[name] == "zoo" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
