"""Edits: select components by their scores, apply, undo, save and compose."""

from .composing import compose
from .damage import Damage, damage_table, overlap, predicted_damage, replayed_damage
from .edit import Edit, load_edit
from .files.card import CardInfo
from .manager import EditManager
from .refining import refine
from .rows.row_edits import RowEdits
from .rows.uses import EditUse
from .selection import Selection, against_damage, retention_aware, select
from .untrusted import MIN_HELDOUT_R, UntrustedScoresWarning
from .weights import AppliedEdit, active_edits

__all__ = [
    "MIN_HELDOUT_R",
    "AppliedEdit",
    "CardInfo",
    "Damage",
    "Edit",
    "EditManager",
    "EditUse",
    "RowEdits",
    "Selection",
    "UntrustedScoresWarning",
    "active_edits",
    "against_damage",
    "compose",
    "damage_table",
    "load_edit",
    "overlap",
    "predicted_damage",
    "refine",
    "replayed_damage",
    "retention_aware",
    "select",
]
