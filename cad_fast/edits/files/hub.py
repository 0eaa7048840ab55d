"""Download the files of an edit from the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


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
