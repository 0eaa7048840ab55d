"""The edits that requests may name, found in one folder when the server starts."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

from ..edits import Edit
from ..edits.files.config import CONFIG_NAME
from ..edits.files.describe import clean
from ..edits.files.store import read_folder


class UnknownEdit(LookupError):
    """There is no such edit, or it has no file."""


class NotLoaded(LookupError):
    """The edit is known but not loaded now."""


class EditLibrary:
    """Edits by the names in their own configs. No name ever becomes a path, and nothing is fetched from the Hub.

    Args:
        folder: folder whose subfolders are edits. It is scanned once; all edits are checked and loaded. None for none.
        pipeline: the pipeline that the edits must fit.
        links: whether its subfolders may be links that lead out of it.

    Raises:
        NotADirectoryError: ``folder`` is no folder.
        FileNotFoundError: a file of an edit is missing.
        PermissionError: an edit is a link that leads out of ``folder``, and ``links`` is False.
        ValueError: an edit is damaged or made for another model, or two have the same name.
    """

    def __init__(self, folder: str | Path | None, pipeline: Any, *, links: bool = False) -> None:
        self._pipeline, self._links = pipeline, links
        self._lock = threading.Lock()  # never held while something is read
        self._sources: dict[str, Path] = {}
        self._loaded: dict[str, Edit] = {}
        self._described: dict[str, dict[str, Any]] = {}
        self._changes = itertools.count(1)
        self._last_change: dict[str, int] = {}
        if folder is None:
            return
        folder = Path(folder)
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder} is no folder: expected one whose subfolders hold edits")
        for source in sorted(path.parent for path in folder.glob(f"*/{CONFIG_NAME}")):
            self.add(self._read(source), source)

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
        self._loaded[edit.name], self._described[edit.name] = edit, _described(edit)
        if source is not None:
            self._sources[edit.name] = source

    @property
    def names(self) -> list[str]:
        """The names of all edits, sorted."""
        return sorted({*self._sources, *list(self._loaded)})

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

    def holds(self, edit: Edit) -> bool:
        """Tell whether ``edit`` itself is in use, and not one that was read before or after it."""
        return self._loaded.get(edit.name) is edit

    def load(self, name: str) -> Edit | None:
        """Read an edit, for the first time or again, from its folder.

        Of several calls for one edit that overlap, the one that began last counts: one that is slow to read undoes no
        ``unload``, and brings back no older files.

        Returns:
            The edit that it replaces, or None.

        Raises:
            UnknownEdit: there is no such edit, or it has no source.
            FileNotFoundError: a file is missing.
            PermissionError: it is now a link that leads out.
            ValueError: the edit is damaged, does not fit the model, or has another name now.
        """
        source, change = self._source(name), self._begin()
        edit = self._read(source)
        if edit.name != name:
            raise ValueError(f"the edit {name!r} now calls itself {edit.name!r}: restart the server")
        described = _described(edit)
        with self._lock:
            if not self._is_latest(name, change):
                return None
            before, self._loaded[name] = self._loaded.get(name), edit
            self._described[name] = described
            return before

    def unload(self, name: str) -> Edit | None:
        """Take an edit out of use.

        Returns:
            The edit, or None if it was not loaded.

        Raises:
            UnknownEdit: there is no such edit, or it has no source.
        """
        self._source(name)
        change = self._begin()
        with self._lock:
            return self._loaded.pop(name, None) if self._is_latest(name, change) else None

    def _begin(self) -> int:
        return next(self._changes)

    def _is_latest(self, name: str, change: int) -> bool:
        """Note a change of an edit. Return False if one that began later is already in place."""
        if change < self._last_change.get(name, 0):
            return False
        self._last_change[name] = change
        return True

    def _read(self, source: Path) -> Edit:
        home = source.parent.resolve()
        if not self._links and home not in source.resolve().parents:
            raise PermissionError(
                f"{source} is a link that leads out of {source.parent}: copy the edit there, or allow such links with "
                "the setting edit_links (--edit-links)"
            )
        return read_folder(source, self._pipeline, kind=Edit)

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
        if name not in self._loaded:
            return {"id": name, "object": "edit", "loaded": False}
        return dict(self._described[name])

    def _require_known(self, name: str) -> None:
        if name not in self._sources and name not in self._loaded:
            raise UnknownEdit(f"there is no edit {name!r}; there are: {', '.join(self.names) or 'none'}")


def _described(edit: Edit) -> dict[str, Any]:
    """Describe an edit that is loaded. It is done once: the digest of a large one takes seconds."""
    concept, selection = (edit.provenance.get(key) for key in ("concept", "selection"))  # anything, from a file
    sign = selection.get("sign") if isinstance(selection, dict) else None
    return {
        "id": edit.name,
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
