"""The state of unfinished attribution runs, so that a stopped run goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import read_tensors, require_writable_folder, write_tensors

STATE_NAME = "attribution_state.safetensors"


class RunState:
    """Partial sums of a run in ``folder``, saved at most every ``interval`` seconds, and thrown away at the end.

    Raises FileExistsError when an unfinished run lies there and ``resume`` is False, and ValueError naming the settings
    that differ when it was made with others.
    """

    def __init__(
        self, folder: str | Path | None, settings: Mapping[str, Any], *, resume: bool, interval: float = 60.0
    ) -> None:
        self.settings = dict(settings)
        self.interval = interval
        self.path = require_writable_folder(folder) / STATE_NAME if folder is not None else None
        self.done = 0
        self.sums: dict[str, Tensor] = {}
        self._saved_at = time.monotonic()
        if self.path is None or not self.path.exists():
            return
        if not resume:
            raise FileExistsError(
                f"{self.path} holds an unfinished run: pass resume=True to go on with it, or delete it"
            )
        sums, metadata = read_tensors(self.path)
        self._require_same_settings(metadata.get("settings", {}))
        self.done, self.sums = int(metadata["done"]), sums

    def _require_same_settings(self, theirs: Mapping[str, Any]) -> None:
        different = [key for key in self.settings.keys() | theirs.keys() if self.settings.get(key) != theirs.get(key)]
        if different:
            changes = "; ".join(
                f"{key}: {theirs.get(key)!r} then, {self.settings.get(key)!r} now" for key in sorted(different)
            )
            raise ValueError(f"{self.path} was started with other settings ({changes})")

    def update(self, done: int, sums: Mapping[str, Tensor]) -> None:
        """Remember that ``done`` passes are in ``sums``; written when the last save is long enough ago."""
        self.done, self.sums = done, dict(sums)
        if self.path is not None and time.monotonic() - self._saved_at >= self.interval:
            self.save()

    def save(self) -> None:
        """Write the state now."""
        if self.path is not None:
            write_tensors(self.path, self.sums, {"done": self.done, "settings": self.settings})
            self._saved_at = time.monotonic()

    def finish(self) -> None:
        """Remove the state: the run's result has been saved."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
