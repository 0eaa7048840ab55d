"""Edits: select components by their scores, apply, undo, save and compose."""

from .damage import Damage, damage_table, overlap, predicted_damage, replayed_damage
from .edit import Edit, amplify, compose, erase
from .files.store import load_edit
from .manager import EditManager
from .refining import refine
from .rows.row_edits import EditUse, RowEdits
from .selection import against_damage, retention_aware, select
from .untrusted import MIN_HELDOUT_R, UntrustedScoresWarning
from .weights import AppliedEdit, active_edits

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
