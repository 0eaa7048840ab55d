"""Where a loaded edit comes from: in memory, or a folder whose tensors are read when they are needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...components.space import ComponentSpace
from ..data import EditData
from .store import read_config, read_edit, read_folder


@dataclass(frozen=True, eq=False)
class EditSource:
    """An edit to be had by ``read``: ``edit`` itself, or what ``place`` (a folder or repository) holds."""

    name: str
    modules: tuple[str, ...]
    edit: EditData | None
    place: str | Path | None
    digest: str | None
    hub_kwargs: dict[str, Any]
    number: int
    """Its own among all that were ever added to one ``RowEdits``."""

    def read(self) -> EditData:
        """The edit. Raises ValueError when its files are not those that were there when it was added."""
        if self.edit is not None:
            return self.edit
        assert self.place is not None, "what has no edit has a place"
        # A folder that has gone is not looked for on the Hub.
        place = self.place
        edit = read_folder(place) if isinstance(place, Path) else read_edit(place, **self.hub_kwargs)
        if edit.digest() != self.digest:
            raise ValueError(f"{self.place} holds another edit than when it was loaded as {self.name!r}: load it again")
        return edit


def open_source(
    edit: EditData | str | Path, number: int, lazy: bool, hub_kwargs: dict[str, Any]
) -> tuple[EditSource, ComponentSpace]:
    """The source of an edit, and the space that says which modules and which model it is of.

    Lazily, of a folder only the config is read; what is in memory or on the Hub is read in full and not kept.
    """
    if lazy and not isinstance(edit, EditData) and Path(edit).is_dir():
        config = read_config(Path(edit))
        space = ComponentSpace([layout.entry for layout in config.modules], config.fingerprint)
        return EditSource(config.name, _modules(space), None, Path(edit), config.digest, {}, number), space
    read = edit if isinstance(edit, EditData) else read_edit(edit, **hub_kwargs)
    kept = read if isinstance(edit, EditData) or not lazy else None
    place = None if isinstance(edit, EditData) else edit
    digest = read.digest() if kept is None else None
    return EditSource(read.name, _modules(read.space), kept, place, digest, hub_kwargs, number), read.space


def _modules(space: ComponentSpace) -> tuple[str, ...]:
    return tuple(entry.module for entry in space)
