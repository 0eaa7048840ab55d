"""Estimate the score of every component."""

from ..choices import METHODS
from .attributor import Attributor, attribute
from .many import load_many, save_many
from .methods.gradient import gradient_scores
from .scores import Scores
from .stop import StopWhen
from .trust import Trust

__all__ = [
    "METHODS",
    "Attributor",
    "Scores",
    "StopWhen",
    "Trust",
    "attribute",
    "gradient_scores",
    "load_many",
    "save_many",
]
