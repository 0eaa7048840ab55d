"""The page of the documentation that says what works on which pipeline: ``python -m tests.families.page`` writes it."""

from __future__ import annotations

from pathlib import Path

from .checks import CHECKS
from .expected import REASONS, REFUSED
from .registry import FAMILIES, Family

PAGE = Path(__file__).resolve().parents[2] / "docs" / "families.md"
KINDS = {"image": "Pictures", "video": "Videos", "audio": "Sound"}
# What a column is called -> its check.
COLUMNS = {
    "record": "record",
    "edit": "edit",
    "per prompt": "manager",
    "file": "file",
    "rows": "rows",
    "serve": "served",
    "layers": "preset",
    "weights": "weights",
    "neurons": "neurons",
    "heads": "heads",
}
INTRODUCTION = """\
# Families of pipelines

The tests build a tiny pipeline of each of these classes of diffusers, with random weights, and hold every result
against something slow and obvious. A cell says what comes out: **yes**, right; **no**, refused, with the reason of that
number below. Other pipelines with a `unet` or a `transformer` are likely to work as their nearest relative here does.
Kolors and OmniGen are left out: they need sentencepiece and torchvision.

| Column | What is held against what |
|---|---|
| record | calls replay to what was recorded, conditional apart from unconditional; latents are as without a recording |
| edit | `Edit.applied` gives what weights changed by hand give, and undo restores every bit |
| per prompt | `EditManager` with an edit for each prompt gives what a call under each edit gives |
| file | an edit that was saved and loaded does the same |
| rows | `cad_fast.rows` with several ablations gives what a copy of the denoiser with each gives |
| serve | two requests under different edits, served together, give what each gives alone |
| layers | the preset `feed-forward` names the layers that the model has, and no others |
| weights | scores of single weights are those of plain autograd |
| neurons | all hidden units are components; their scores are those of plain autograd |
| heads | all attention heads are components; their scores are those of plain autograd |
"""


def page() -> str:
    """Return the page as it has to be."""
    used: list[str] = []
    tables = "".join(_table(kind, used) for kind in KINDS)
    reasons = "".join(f"{number}. {REASONS[name]}\n" for number, name in enumerate(used, 1))
    return f"{INTRODUCTION}{tables}\n## Why not\n\n{reasons}"


def _table(kind: str, used: list[str]) -> str:
    header = "| Family | Pipeline | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 2) + "|\n"
    rows = "".join(_row(family, used) for family in FAMILIES.values() if family.kind == kind)
    return f"\n## {KINDS[kind]}\n\n{header}{rows}"


def _row(family: Family, used: list[str]) -> str:
    cells = [_cell(family.name, check, used) for check in COLUMNS.values()]
    return f"| {family.name} | `{family.pipeline_class}` | " + " | ".join(cells) + " |\n"


def _cell(family: str, check: str, used: list[str]) -> str:
    name = REFUSED.get((family, check))
    if name is None:
        return "yes"
    if name not in used:
        used.append(name)
    return f"no ({used.index(name) + 1})"


assert set(COLUMNS.values()) == CHECKS.keys(), "a check has no column"

if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
