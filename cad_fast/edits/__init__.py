"""Edits: select components by their scores, apply, undo, save and compose."""

from .apply import AppliedEdit, active_edits
from .edit import Edit, amplify, compose, erase
from .io import load_edit
from .manager import EditManager
from .refine import refine
from .row_edits import EditUse, RowEdits
from .select import retention_aware, select

__all__ = [
    "AppliedEdit",
    "Edit",
    "EditManager",
    "EditUse",
    "RowEdits",
    "active_edits",
    "amplify",
    "compose",
    "erase",
    "load_edit",
    "refine",
    "retention_aware",
    "select",
]
