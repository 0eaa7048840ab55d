"""Probes in a folder, saved as they are finished, so that an audit that was stopped goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from ..files import read_json, require_writable_folder, write_json, write_png
from .result import Probe

Found = tuple[Probe, Image.Image | None]


class ProbeStore:
    """Probes and the sheets of their first pictures; in memory alone without a folder.

    Raises ValueError naming the setting that differs when the folder holds an audit made under others.
    """

    def __init__(self, folder: str | Path | None, settings: dict[str, Any]) -> None:
        self.folder = None if folder is None else require_writable_folder(folder)
        if self.folder is None:
            return
        path, mine = self.folder / "settings.json", json.loads(json.dumps(settings))
        theirs = read_json(path) if path.exists() else None
        if theirs is None:
            write_json(path, mine)
        elif theirs != mine:
            name = next(key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key))
            was, now = (
                "another" if isinstance(each.get(name), dict) else repr(each.get(name)) for each in (theirs, mine)
            )
            raise ValueError(f"{self.folder} holds an audit whose {name} is {was}, not {now}: choose another folder")

    def stored(self, name: str, make: Callable[[], Found]) -> Found:
        """The probe of a name, from ``make()`` if there is none."""
        if self.folder is None:
            return make()
        path = self.folder / f"probe-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
        picture = path.with_suffix(".png")
        if not path.exists():
            probe, sheet = make()
            if sheet is not None:
                write_png(picture, sheet)
            write_json(path, probe.to_dict())
            return probe, sheet
        probe = Probe.from_dict(read_json(path))
        if probe.name != name:
            raise ValueError(f"{path} holds the probe {probe.name!r}, expected {name!r}")
        if not picture.exists():
            return probe, None
        with Image.open(picture) as sheet:
            return probe, sheet.convert("RGB")
