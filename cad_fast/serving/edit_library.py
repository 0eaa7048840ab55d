"""The edits a server may use, by name: found in one folder, once."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from ..edits import Edit, load_edit
from ..edits.files.config import CONFIG_NAME
from ..edits.files.describe import clean


class UnknownEdit(LookupError):
    """No edit of this name may be used."""


class NotLoaded(LookupError):
    """The edit is known, but not loaded now."""


class EditLibrary:
    """Edits by name. Names are those in the edits' own configs; a name never becomes a path.

    ``folder`` is scanned once: its subfolders that hold an edit. All are checked against the pipeline and loaded.
    Raises NotADirectoryError, FileNotFoundError or ValueError naming what is damaged, made for another model, or
    twice there.
    """

    def __init__(self, folder: str | Path | None, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._lock = threading.Lock()
        self._sources: dict[str, Path] = {}
        self._loaded: dict[str, Edit] = {}
        if folder is None:
            return
        folder = Path(folder)
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder} is no folder: expected one whose subfolders hold edits")
        for source in sorted(path.parent for path in folder.glob(f"*/{CONFIG_NAME}")):
            self.add(load_edit(source, pipeline), source)

    def add(self, edit: Edit, source: Path | None = None) -> None:
        """Allow an edit; from ``source`` it can be loaded again. Raises ValueError when its name is taken."""
        if edit.name in self._loaded:
            raise ValueError(f"two edits have the name {edit.name!r}, one of them in {source}: rename one")
        self._loaded[edit.name] = edit
        if source is not None:
            self._sources[edit.name] = source

    @property
    def names(self) -> list[str]:
        return sorted({*self._sources, *self._loaded})

    def get(self, name: str) -> Edit:
        """The edit of this name. Raises UnknownEdit, or NotLoaded."""
        edit = self._loaded.get(name)
        if edit is None:
            self._require_known(name)
            raise NotLoaded(f"the edit {name!r} is not loaded now")
        return edit

    def is_loaded(self, name: str) -> bool:
        """Whether requests may use the edit of this name now."""
        return name in self._loaded

    def load(self, name: str) -> Edit | None:
        """Read an edit (again) from where it was found; returns the one that it replaces.

        Raises UnknownEdit, also for one that was added without a source, or what ``load_edit`` raises.
        """
        with self._lock:
            edit = load_edit(self._source(name), self._pipeline)
            if edit.name != name:
                raise ValueError(f"the edit {name!r} now calls itself {edit.name!r}: restart the server")
            before, self._loaded[name] = self._loaded.get(name), edit
            return before

    def unload(self, name: str) -> Edit | None:
        """Take an edit out of use and return it; None if it was not loaded. Raises as ``load``."""
        with self._lock:
            self._source(name)
            return self._loaded.pop(name, None)

    def _source(self, name: str) -> Path:
        self._require_known(name)
        if name not in self._sources:
            raise UnknownEdit(f"the edit {name!r} came without a file to load it from")
        return self._sources[name]

    def describe(self, name: str) -> dict[str, Any]:
        """What there is to know about an edit, as JSON. Raises UnknownEdit."""
        self._require_known(name)
        edit = self._loaded.get(name)
        if edit is None:
            return {"id": name, "object": "edit", "loaded": False}
        concept, selection = (edit.provenance.get(key) for key in ("concept", "selection"))  # anything, from a file
        sign = selection.get("sign") if isinstance(selection, dict) else None
        return {
            "id": name,
            "object": "edit",
            "loaded": True,
            "concept": None if concept is None else clean(concept),
            # An edit of components with positive scores erases, one of those with negative scores amplifies.
            "effect": {"positive": "erase", "negative": "amplify"}.get(str(sign)),
            "kind": edit.space.kind,
            "components": edit.n_components,
            "weights": edit.n_weights,
            "modules": len(edit.components),
            "factor": edit.factor,
            "digest": edit.digest(),
        }

    def _require_known(self, name: str) -> None:
        if name not in self._sources and name not in self._loaded:
            raise UnknownEdit(f"there is no edit {name!r}; there are: {', '.join(self.names) or 'none'}")
