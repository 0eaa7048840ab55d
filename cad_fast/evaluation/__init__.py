"""Does an edit remove its concept, and what does it leave of the others: scorers, evaluation, pictures and reports."""

from .comparison import Change, Comparison, compare, require_comparable
from .evaluate import AppliesToPipeline, evaluate, image_seed
from .intervals import Interval, PairedCounts, paired_difference, paired_ratio, wilson
from .outcomes import Evaluation, Outcome, Settings, Tally
from .plots import bars_before_after, module_share_plot, tradeoff_plot
from .prompts import LabelledPrompt, PromptSet, emoji_prompts
from .report import Figure, Figures, Heading, Paragraph, Picture, Section, Table, comparison_table, write_report
from .score_plots import cost_plot, damage_plot, fractions_plot, overlap_plot
from .scorers import ClipScorer, EmojiScorer, Scorer
from .sheets import before_after_sheet, contact_sheet

__all__ = [
    "AppliesToPipeline",
    "Change",
    "ClipScorer",
    "Comparison",
    "EmojiScorer",
    "Evaluation",
    "Figure",
    "Figures",
    "Heading",
    "Interval",
    "LabelledPrompt",
    "Outcome",
    "PairedCounts",
    "Paragraph",
    "Picture",
    "PromptSet",
    "Scorer",
    "Section",
    "Settings",
    "Table",
    "Tally",
    "bars_before_after",
    "before_after_sheet",
    "compare",
    "comparison_table",
    "contact_sheet",
    "cost_plot",
    "damage_plot",
    "emoji_prompts",
    "evaluate",
    "fractions_plot",
    "image_seed",
    "module_share_plot",
    "overlap_plot",
    "paired_difference",
    "paired_ratio",
    "require_comparable",
    "tradeoff_plot",
    "wilson",
    "write_report",
]
