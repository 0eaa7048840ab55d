"""The arguments of a server that an engine starts. They may come as text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..settings import Settings, read_admin_token, setting

if TYPE_CHECKING:
    from ..server import Server


class ServerArguments(Settings):
    """The settings of a server, and where its model, edits and admin token are.

    The admin token itself is no argument, so that it does not stand in an engine's configuration.
    """

    model: str = setting(
        ...,
        "what is served: zoo:emoji, zoo:emoji-flow, a local diffusers folder, or a repository of the Hub; it is the "
        "model's name",
    )
    edit_dir: str | None = setting(
        None, "folder whose subfolders are the edits that requests may name", default_text="no edits"
    )
    edit_links: bool = setting(False, "whether the edits of `edit_dir` may be links that lead out of it")
    device: str = setting("cpu", "where the pipeline runs", form="a device of torch")
    admin_token_file: str | None = setting(
        None, "file with the token of the admin routes", default_text="CAD_FAST_ADMIN_TOKEN, or no admin routes"
    )

    def load(self) -> Server:
        """Load the server, without starting it. Raise the errors of ``load_server`` and ``read_admin_token``."""
        from ..server import load_server

        token = read_admin_token(self.admin_token_file)
        return load_server(self, self.edit_dir, self.device, token, edit_links=self.edit_links)

    def with_whole_paths(self) -> Any:
        """Make the paths absolute, for a process that runs in another folder."""
        whole = {
            name: str(Path(value).resolve())
            for name in ("edit_dir", "admin_token_file", "model")
            if (value := getattr(self, name)) is not None and (name != "model" or Path(value).is_dir())
        }
        return self.model_copy(update=whole)
