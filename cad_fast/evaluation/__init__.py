"""Does an edit remove its concept, and what does it leave of the others: prompts, scorers, evaluation, comparison."""

from .aesthetic import AestheticMeasure
from .clip_scorer import ClipMeasure, ClipScorer
from .colours import ColourDistance, ColourStatistics
from .comparison import Change, Comparison, compare, require_comparable
from .drawing import image_seed
from .evaluate import AppliesToPipeline, evaluate, evaluate_each
from .features import FeatureDistance, InceptionFeatures
from .intervals import Interval, PairedCounts, paired_difference, paired_ratio, wilson
from .lpips import Lpips
from .nudenet_scorer import NudeNetScorer
from .outcomes import Evaluation, Outcome, Settings, Tally
from .prompt_files import read_prompts
from .prompts import LabelledPrompt, PromptSet
from .protocols import attack_rows, reference_rows
from .rows import write_csv
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
    "evaluate_each",
    "image_seed",
    "paired_difference",
    "paired_ratio",
    "attack_rows",
    "read_prompts",
    "reference_rows",
    "write_csv",
    "require_comparable",
    "wilson",
]
