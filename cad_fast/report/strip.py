"""A strip of pictures over strengths, from erasing to amplifying: one batch, every row under its own strength."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..diffusion.context import generators, plain_tensors, silent
from ..diffusion.generation import Generation
from ..edits.edit import Edit
from ..edits.manager import EditManager
from ..edits.rows.spread import Branches, Windows
from .sheets import contact_sheet

STRENGTHS = (1.5, 1.0, 0.5, 0.0, -0.5, -1.0)
"""From beyond erasing over off (0) to amplifying, of an edit that erases; the reverse of one that amplifies."""


@dataclass
class Strip:
    """``images[p][s]``: prompt p at strength s, all from the same noise; ``sheet`` shows them with labels."""

    sheet: Image.Image
    images: list[list[Image.Image]]
    prompts: list[str]
    strengths: list[float]


def strip(
    pipeline: Any,
    edits: Edit | str | Path | Sequence[Edit | str | Path],
    prompt: str | Sequence[str],
    strengths: Sequence[float] = STRENGTHS,
    *,
    seed: int = 0,
    windows: Windows = None,
    branch: Branches = "both",
    scale: float | None = None,
    progress: bool = False,
    **pipeline_kwargs: Any,
) -> Strip:
    """Pictures of each prompt at every strength of the edits, in one call of the pipeline and from the same noise.

    ``pipeline`` may be an EditManager: ``edits`` are then names of its own, or others that are loaded for this call
    alone. Several edits all have the strip's strength. ``windows`` and ``branch`` as for ``EditManager``, ``scale`` as
    for ``contact_sheet``; ``pipeline_kwargs`` go to the pipeline (steps, guidance). The batch is prompts times
    strengths. Raises ValueError for no strengths or prompts, and as ``EditManager`` does.
    """
    generation = Generation.of(**pipeline_kwargs)
    listed = [edits] if isinstance(edits, (Edit, str, Path)) else list(edits)
    texts = [prompt] if isinstance(prompt, str) else list(prompt)
    for name, values in (("edits", listed), ("prompts", texts), ("strengths", strengths)):
        if not len(values):
            raise ValueError(f"no {name} were given for the strip")
    with loaded(pipeline, listed) as (manager, names), plain_tensors():
        quiet = contextlib.nullcontext() if progress else silent(manager.pipeline)
        with quiet:
            flat = manager(
                [text for text in texts for _ in strengths],
                edit_names=[names] * (len(texts) * len(strengths)),
                edit_weights=[strength for _ in texts for strength in strengths],
                windows=windows,
                branch=branch,
                generator=generators([seed] * (len(texts) * len(strengths))),
                **generation.to_kwargs(len(texts) * len(strengths)),
            ).images
    rows = [list(flat[i * len(strengths) : (i + 1) * len(strengths)]) for i in range(len(texts))]
    sheet = contact_sheet(rows, texts, [f"strength {strength:g}" for strength in strengths], scale=scale)
    return Strip(sheet, rows, texts, [float(strength) for strength in strengths])


@contextlib.contextmanager
def loaded(pipeline: Any, edits: Sequence[Edit | str | Path]) -> Iterator[tuple[EditManager, list[str]]]:
    """A manager with these edits under the names given; what was not loaded before is forgotten afterwards."""
    manager = pipeline if isinstance(pipeline, EditManager) else EditManager(pipeline)
    known = manager.row_edits.names
    names: list[str] = []
    try:
        for number, edit in enumerate(edits):
            if isinstance(edit, str) and edit in known:
                names.append(edit)
            else:
                names.append(manager.load_edit(edit, f"strip-{number}" if manager is pipeline else None))
        yield manager, names
    finally:
        for name in names:
            if name not in known:
                manager.delete_edits(name)
        if manager is not pipeline:
            manager.close()
