"""Estimate the score of every component."""

from .attributor import METHODS, Attributor, attribute
from .gradient import gradient_scores
from .scores import Scores

__all__ = ["METHODS", "Attributor", "Scores", "attribute", "gradient_scores"]
