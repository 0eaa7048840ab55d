"""Pictures, plots and pages for people to look at."""

from .html import Figure, Figures, Heading, Paragraph, Picture, Section, Table, comparison_table, write_report
from .plots import bars_before_after, module_share_plot, recall_plot, tradeoff_plot
from .score_plots import cost_plot, damage_plot, fractions_plot, overlap_plot
from .sheets import before_after_sheet, contact_sheet

__all__ = [
    "Figure",
    "Figures",
    "Heading",
    "Paragraph",
    "Picture",
    "Section",
    "Table",
    "bars_before_after",
    "before_after_sheet",
    "comparison_table",
    "contact_sheet",
    "cost_plot",
    "damage_plot",
    "fractions_plot",
    "module_share_plot",
    "overlap_plot",
    "recall_plot",
    "tradeoff_plot",
    "write_report",
]
