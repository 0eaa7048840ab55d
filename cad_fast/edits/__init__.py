"""Edits: select components by their scores, apply, undo, save and compose."""

from .apply import AppliedEdit, active_edits
from .damage import Damage, damage_table, overlap, predicted_damage, replayed_damage
from .edit import Edit, amplify, compose, erase
from .io import load_edit
from .manager import EditManager
from .refine import refine
from .row_edits import EditUse, RowEdits
from .select import against_damage, retention_aware, select
from .trust import MIN_HELDOUT_R, UntrustedScoresWarning

__all__ = [
    "MIN_HELDOUT_R",
    "AppliedEdit",
    "Damage",
    "Edit",
    "EditManager",
    "EditUse",
    "RowEdits",
    "UntrustedScoresWarning",
    "active_edits",
    "against_damage",
    "amplify",
    "compose",
    "damage_table",
    "erase",
    "load_edit",
    "overlap",
    "predicted_damage",
    "refine",
    "replayed_damage",
    "retention_aware",
    "select",
]
