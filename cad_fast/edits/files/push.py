"""Upload an edit to the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from dataclasses import replace

from ..data import EditData
from .card import CardInfo, write_card
from .store import save_edit


def push_edit(
    edit: EditData,
    repo_id: str,
    info: CardInfo,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload the edit's files and its model card: see ``Edit.push_to_hub``."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        # The card names the repository only here, for a folder has none.
        save_edit(edit, folder)
        write_card(edit, folder, replace(info, repo_id=repo_id))
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=commit_message or f"Upload edit {edit.name}",
            create_pr=create_pr,
        )
    return str(commit.pr_url if create_pr else commit.commit_url)
