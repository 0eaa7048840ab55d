"""Edits: select components by their scores, apply, undo, save and compose."""

from .apply import AppliedEdit, active_edits
from .damage import Damage, damage_table, overlap, predicted_damage
from .edit import Edit, amplify, compose, erase
from .io import load_edit
from .refine import refine
from .select import retention_aware, select

__all__ = [
    "AppliedEdit",
    "Damage",
    "Edit",
    "active_edits",
    "amplify",
    "compose",
    "damage_table",
    "erase",
    "load_edit",
    "overlap",
    "predicted_damage",
    "refine",
    "retention_aware",
    "select",
]
