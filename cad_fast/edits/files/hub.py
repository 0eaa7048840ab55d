"""Which names mean a repository of the Hugging Face Hub, and the download of an edit's files from there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PREFIX = "hub:"
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}", re.ASCII)


def hub_repository(source: str | Path) -> str:
    """The repository of the Hub that ``source``, which is no folder, stands for.

    ``hub:OWNER/NAME`` always is one. ``OWNER/NAME`` is one unless OWNER is here on the disk: then it is a path that was
    misspelt or has gone, and what a stranger has put on the Hub under that name is not what was meant. A ``Path`` never
    is one.

    Raises:
        FileNotFoundError: it stands for none.
    """
    text = str(source)
    named = text.removeprefix(PREFIX)
    if isinstance(source, str) and _REPOSITORY.fullmatch(named):
        owner = named.partition("/")[0]
        if text.startswith(PREFIX) or not Path(owner).exists():
            return named
        raise FileNotFoundError(
            f"{named} does not exist, but {owner} is here: it is taken for a path, and the Hub is not asked. A "
            f"repository of that name is {PREFIX}{named}"
        )
    raise FileNotFoundError(f"{text[:200]!r} is no folder here, and no repository of the Hub ({PREFIX}OWNER/NAME)")


def download(repository: str, names: Sequence[str], hub_kwargs: Mapping[str, Any]) -> Path:
    """Fetch the named files of a repository; returns the folder. Raises FileNotFoundError when that fails."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        paths = [Path(hf_hub_download(repository, name, **hub_kwargs)) for name in names]
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"{repository[:200]!r} is neither a folder with an edit nor a repository that can be read: {error}"
        ) from error
    return paths[0].parent
