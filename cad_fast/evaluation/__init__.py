"""Does an edit remove its concept, and what does it leave of the others: prompts, scorers, evaluation, comparison."""

from .aesthetic import AestheticMeasure
from .clip_scorer import ClipMeasure, ClipScorer
from .colours import ColourDistance, ColourStatistics
from .comparison import Change, Comparison, compare, require_comparable
from .drawing import image_seed
from .evaluate import AppliesToPipeline, evaluate
from .features import FeatureDistance, InceptionFeatures
from .intervals import Interval, PairedCounts, paired_difference, paired_ratio, wilson
from .lpips import Lpips
from .nudenet_scorer import NudeNetScorer
from .outcomes import Evaluation, Outcome, Settings, Tally
from .prompt_files import read_prompts
from .prompts import LabelledPrompt, PromptSet
from .scorers import Distance, ImageFeatures, Measure, Scorer

__all__ = [
    "Lpips",
    "InceptionFeatures",
    "FeatureDistance",
    "ColourStatistics",
    "ColourDistance",
    "AestheticMeasure",
    "AppliesToPipeline",
    "Change",
    "ClipMeasure",
    "ClipScorer",
    "Comparison",
    "Distance",
    "Evaluation",
    "ImageFeatures",
    "Interval",
    "LabelledPrompt",
    "Measure",
    "NudeNetScorer",
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
    "read_prompts",
    "require_comparable",
    "wilson",
]
