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

__all__ = ["BASELINES", "Baseline", "Cad", "ConceptPrune", "EsdX", "Uce", "write_checkpoint"]
