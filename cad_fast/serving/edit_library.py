"""The edits that requests may name, found in one folder when the server starts."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from ..edits import Edit, load_edit
from ..edits.files.config import CONFIG_NAME
from ..edits.files.describe import clean


class UnknownEdit(LookupError):
    """There is no such edit, or it has no file."""


class NotLoaded(LookupError):
    """The edit is known but not loaded now."""


class EditLibrary:
    """Edits by the names in their own configs. No name ever becomes a path.

    Args:
        folder: folder whose subfolders are edits. It is scanned once; all edits are checked and loaded. None for none.
        pipeline: the pipeline that the edits must fit.

    Raises:
        NotADirectoryError: ``folder`` is no folder.
        FileNotFoundError: a file of an edit is missing.
        ValueError: an edit is damaged or made for another model, or two have the same name.
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
        """Let requests name an edit.

        Args:
            edit: the edit.
            source: the folder to load it from again; None if there is none.

        Raises:
            ValueError: its name is taken.
        """
        if edit.name in self._loaded:
            raise ValueError(f"two edits have the name {edit.name!r}, one of them in {source}: rename one")
        self._loaded[edit.name] = edit
        if source is not None:
            self._sources[edit.name] = source

    @property
    def names(self) -> list[str]:
        """The names of all edits, sorted."""
        return sorted({*self._sources, *self._loaded})

    def get(self, name: str) -> Edit:
        """Return the edit of this name.

        Raises:
            UnknownEdit: there is none.
            NotLoaded: it is not loaded now.
        """
        edit = self._loaded.get(name)
        if edit is None:
            self._require_known(name)
            raise NotLoaded(f"the edit {name!r} is not loaded now")
        return edit

    def is_loaded(self, name: str) -> bool:
        """Tell whether requests may use the edit of this name now."""
        return name in self._loaded

    def load(self, name: str) -> Edit | None:
        """Read an edit, for the first time or again, from its source. Raise the errors of ``load_edit``.

        Returns:
            The edit that it replaces, or None.

        Raises:
            UnknownEdit: there is no such edit, or it has no source.
            ValueError: the edit now has another name.
        """
        with self._lock:
            edit = load_edit(self._source(name), self._pipeline)
            if edit.name != name:
                raise ValueError(f"the edit {name!r} now calls itself {edit.name!r}: restart the server")
            before, self._loaded[name] = self._loaded.get(name), edit
            return before

    def unload(self, name: str) -> Edit | None:
        """Take an edit out of use.

        Returns:
            The edit, or None if it was not loaded.

        Raises:
            UnknownEdit: there is no such edit, or it has no source.
        """
        with self._lock:
            self._source(name)
            return self._loaded.pop(name, None)

    def _source(self, name: str) -> Path:
        self._require_known(name)
        if name not in self._sources:
            raise UnknownEdit(f"the edit {name!r} came without a file to load it from")
        return self._sources[name]

    def describe(self, name: str) -> dict[str, Any]:
        """Describe an edit as values of JSON.

        Raises:
            UnknownEdit: there is no such edit.
        """
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
