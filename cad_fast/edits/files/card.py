"""The model card that lies beside an edit: ``README.md`` as the Hugging Face Hub reads it."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...files import write_bytes, write_text
from ..data import EditData
from .describe import clean, describe, evaluation_rows, trust_text

if TYPE_CHECKING:
    from PIL import Image

CARD_NAME = "README.md"
SHEET_NAME = "sheet.png"
TAGS = ("cad_fast", "diffusers", "model-editing", "text-to-image")


@dataclass(frozen=True)
class CardInfo:
    """What a model card says beyond the edit's provenance.

    Attributes:
        sheet: PIL image of pictures before and after, written as ``sheet.png``.
        base_model: the model's name on the Hub.
        license: an identifier of the Hub's, such as "apache-2.0".
        repo_id: where the edit will be found.
    """

    sheet: Image.Image | None = None
    base_model: str | None = None
    license: str | None = None
    repo_id: str | None = None


def write_card(edit: EditData, folder: str | Path, info: CardInfo) -> Path:
    """Write ``README.md`` and, where there is one, the sheet into ``folder``; return the card's path."""
    folder = Path(folder)
    if info.sheet is not None:
        buffer = io.BytesIO()
        info.sheet.save(buffer, format="PNG", optimize=True)
        write_bytes(folder / SHEET_NAME, buffer.getvalue())
    return write_text(folder / CARD_NAME, card_text(edit, info))


def card_text(edit: EditData, info: CardInfo) -> str:
    """Write the card: YAML front matter (library_name, base_model, tags, licence), then what the edit is and does."""
    from huggingface_hub import ModelCardData

    about = describe(edit)
    has_sheet, base_model, repo_id = info.sheet is not None, info.base_model, info.repo_id
    on_hub = None if base_model is None or ":" in base_model else base_model  # zoo:emoji is no repository
    relation: dict[str, Any] = {} if on_hub is None else {"base_model_relation": "adapter"}
    data = ModelCardData(
        library_name="cad_fast",
        base_model=on_hub,
        license=info.license,
        tags=list(TAGS),
        pipeline_tag="text-to-image",
        **relation,
    )
    parts = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {edit.name}\n",
        f"{_purpose(edit)} {edit.n_components} components of kind {edit.space.kind} ({edit.n_weights} weights in "
        f"{len(edit.components)} modules) are multiplied by {edit.factor:g}; everything else stays as it is.\n",
        _use(edit, base_model, repo_id),
        *_figures(edit, has_sheet),
        "## How it was made\n",
        _table(("", ""), [(key, value) for key, value in _facts(about)]),
        f"\nDigest: `{edit.digest()}`\n",
    ]
    return "\n".join(parts)


def _purpose(edit: EditData) -> str:
    concept = edit.provenance.get("concept")
    sign = _get(edit.provenance, "selection", "sign")
    verb = {"positive": "erase", "negative": "amplify"}.get(str(sign))
    method = "[component attribution](https://arxiv.org/abs/2412.02542)"
    if concept is None or verb is None:
        return "An edit of a diffusion model's weights."
    return f"An edit of a diffusion model's weights, made by {method} to {verb} “{_cell(concept)}”."


def _use(edit: EditData, base_model: str | None, repo_id: str | None) -> str:
    model = json.dumps(base_model or f"a model with the {edit.space.fingerprint.model_class} it was made for")
    place = json.dumps(repo_id or edit.name)
    return (
        "```python\nimport cad_fast\n\n"
        f"pipe = cad_fast.load_pipeline({model})\n"
        f"edit = cad_fast.load_edit({place}, pipe)  # refused on another model\n"
        'with edit.applied(pipe):\n    image = pipe("a prompt").images[0]\n```\n'
    )


def _figures(edit: EditData, has_sheet: bool) -> list[str]:
    rows = evaluation_rows(edit.provenance.get("evaluation"))
    picture = f"![Pictures before and after the edit, on the same seeds]({SHEET_NAME})\n" if has_sheet else ""
    if not rows:
        return ["## What it does\n", picture, "It was not evaluated.\n"] if picture else ["It was not evaluated.\n"]
    note = "Recognised before and after, on the same seeds; in brackets 95% intervals, changes in percentage points.\n"
    return ["## What it does\n", picture, note, _table(("", "before", "after", "change", "kept"), rows), ""]


def _facts(about: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [
        ("model class", about["model"]),
        ("concept", about["concept"]),
        ("method", about["method"]),
        ("objective", about["objective"]),
        ("selection", about["selection"]),
        ("refined", about["refined"]),
        ("held-out check of the scores", trust_text(about["trust"])),
        ("prompts", about["prompts"]),
        ("seeds", about["seeds"]),
        ("versions", about["versions"]),
    ]
    return [(key, _plain(value)) for key, value in facts if value not in (None, "", [], {})]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items() if entry not in (None, [], {}))
    if isinstance(value, list):
        shown = ", ".join(_plain(entry) for entry in value[:8])
        return f"{shown}, and {len(value) - 8} more" if len(value) > 8 else shown
    return str(value)


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell if row is columns else _cell(cell) for cell in row) + " |" for row in lines)


def _cell(text: Any) -> str:
    """A text from elsewhere, which may neither end its cell nor be taken for markup."""
    escaped = clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{char}" if char in "\\`*_[]|#!~" else char for char in escaped)


def _get(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
