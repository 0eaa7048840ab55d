"""Estimate the score of every component."""

from ..choices import METHODS
from .attributor import Attributor, attribute
from .methods.gradient import gradient_scores
from .scores import Scores, load_many, save_many
from .settings import RunOptions
from .stop import StopWhen
from .trust import Trust

__all__ = [
    "METHODS",
    "Attributor",
    "RunOptions",
    "Scores",
    "StopWhen",
    "Trust",
    "attribute",
    "gradient_scores",
    "load_many",
    "save_many",
]
