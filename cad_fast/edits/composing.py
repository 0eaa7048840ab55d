"""Several edits as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..components.module_components import ModuleComponents, numbered
from ..components.space import ComponentSpace
from .data import AnyEdit


def compose(edits: Sequence[AnyEdit], name: str | None = None) -> AnyEdit:
    """Make one edit with the components of all; a component in several is edited once. The order does not matter.

    Edits of different kinds become edits of single weights.

    Args:
        edits: at least one, of the same model and with the same factor.
        name: of the new edit; by default the names of all, joined by dots.

    Raises:
        ValueError: there is no edit, or models or factors differ; the message names the edits.
    """
    if not edits:
        raise ValueError("compose needs at least one edit")
    if len({edit.space.kind for edit in edits}) > 1:
        edits = [edit.to_weights() for edit in edits]
    first = edits[0]
    entries: dict[str, ModuleComponents] = {}
    merged: dict[str, list[Tensor]] = {}
    for edit in edits:
        first.space.fingerprint.require_same(
            edit.space.fingerprint, f"edit {first.name!r} (composed with {edit.name!r})"
        )
        if edit.factor != first.factor:
            raise ValueError(
                f"{first.name!r} has factor {first.factor:g}, {edit.name!r} has {edit.factor:g}: apply them one by one"
            )
        for entry in edit.space:
            entries[entry.module] = entry
            merged.setdefault(entry.module, []).append(edit.components[entry.module])
    components = {module: torch.cat(parts).unique(sorted=True) for module, parts in merged.items()}
    pairs = {module: other for edit in edits for module, other in edit.space.shared().items()}
    # Where one edit names a head's share in one module alone, the composed one has two sets of heads.
    shared = {module: other for module, other in pairs.items() if torch.equal(components[module], components[other])}
    ordered = numbered([entries[module] for module in sorted(entries)], shared)
    parts = sorted({edit.name for edit in edits})
    provenance = {
        "composed_of": [
            {"name": e.name, "digest": e.digest(), **e.provenance} for e in sorted(edits, key=lambda e: e.name)
        ]
    }
    return type(first)(
        name or ".".join(parts)[:64],
        ComponentSpace(ordered, first.space.fingerprint),
        components,
        first.factor,
        provenance,
    )
