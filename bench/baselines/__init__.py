"""Other methods that erase a concept, re-created in this project's own words, to measure cad_fast against.

Each is a frozen dataclass of its settings with a method ``weights``. They are studies and no public API: they know the
embedded model alone.
"""

from __future__ import annotations

from .cad import Cad
from .common import Baseline, write_checkpoint
from .conceptprune import ConceptPrune
from .esd import EsdX
from .uce import Uce

BASELINES: dict[str, Baseline] = {each.name: each for each in (EsdX(), Uce(), ConceptPrune(), Cad())}

STRONGER: dict[str, tuple[Baseline, ...]] = {
    "esd-x": (EsdX(iterations=400), EsdX(iterations=400, learning_rate=1e-3), EsdX(iterations=800, learning_rate=1e-3)),
    "uce": (Uce(erase_scale=3.0), Uce(erase_scale=10.0), Uce(erase_scale=30.0)),
    "cad": (Cad(ratio=0.15), Cad(ratio=0.2), Cad(ratio=0.3)),
}
"""The same methods with a stronger hand, in turns, for objects that their own settings do not erase."""

__all__ = ["BASELINES", "STRONGER", "Baseline", "Cad", "ConceptPrune", "EsdX", "Uce", "write_checkpoint"]
