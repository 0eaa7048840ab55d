"""Edits on the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..edit import Edit


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


def push_edit(
    edit: Edit,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    **card: Any,
) -> str:
    """Upload what ``Edit.save_pretrained(card=True, **card)`` writes; see ``Edit.push_to_hub``."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        # The card names the repository only here, for a folder has none.
        edit.save_pretrained(folder, card=True, repo_id=repo_id, **card)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=commit_message or f"Upload edit {edit.name}",
            create_pr=create_pr,
        )
    return str(commit.pr_url if create_pr else commit.commit_url)
