"""Does an edit remove its concept, and what does it leave of the others: prompts, scorers, evaluation, comparison."""

from .comparison import Change, Comparison, compare, require_comparable
from .drawing import image_seed
from .evaluate import AppliesToPipeline, evaluate
from .intervals import Interval, PairedCounts, paired_difference, paired_ratio, wilson
from .outcomes import Evaluation, Outcome, Settings, Tally
from .prompts import LabelledPrompt, PromptSet
from .scorers import ClipScorer, Scorer

__all__ = [
    "AppliesToPipeline",
    "Change",
    "ClipScorer",
    "Comparison",
    "Evaluation",
    "Interval",
    "LabelledPrompt",
    "Outcome",
    "PairedCounts",
    "PromptSet",
    "Scorer",
    "Settings",
    "Tally",
    "compare",
    "evaluate",
    "image_seed",
    "paired_difference",
    "paired_ratio",
    "require_comparable",
    "wilson",
]
