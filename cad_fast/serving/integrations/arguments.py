"""What a server is made of as typed arguments that may come as text: for engines that start servers themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, create_model

from ..command import admin_token
from ..server import Server, load_server
from ..settings import Settings

# Given by a file or the environment, so that it does not stand in an engine's configuration.
SECRET = "admin_token"


def _words(value: Any) -> Any:
    """``"a, b"`` as ``["a", "b"]``: command lines and Triton's parameters have no lists."""
    return [word.strip() for word in value.split(",")] if isinstance(value, str) else value


Words = BeforeValidator(_words)


def _setting(hint: Any, default: Any) -> tuple[Any, Any]:
    return (Annotated[hint, Words] if "tuple" in str(hint) else hint), default


class _Arguments(BaseModel):
    """What is no setting of ``Settings``: where things are."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True, protected_namespaces=())

    model: str
    edit_dir: str | None = None
    device: str = "cpu"
    admin_token_file: str | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Any:
        """The arguments that ``values`` give. Raises ValueError naming each one that is unknown or does not fit."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            unknown = {"extra_forbidden": f"there is no such argument, there are {', '.join(cls.model_fields)}"}
            faults = [
                f"{'.'.join(map(str, each['loc'])) or 'the arguments'}: {unknown.get(each['type'], each['msg'])}"
                for each in error.errors()
            ]
            raise ValueError("; ".join(faults)) from None

    def settings(self) -> Settings:
        """The settings, the admin token read from its file or CAD_FAST_ADMIN_TOKEN."""
        own = {each.name: getattr(self, each.name) for each in fields(Settings) if each.name != SECRET}
        return Settings(**{**own, SECRET: admin_token(self.admin_token_file)})

    def load(self) -> Server:
        """The server, not started yet. Raises as ``load_server``."""
        return load_server(self.settings(), self.edit_dir, self.device)

    def with_whole_paths(self) -> Any:
        """The same with absolute paths, for a process that runs in another folder."""
        whole = {
            name: str(Path(value).resolve())
            for name in ("edit_dir", "admin_token_file", "model")
            if (value := getattr(self, name)) is not None and (name != "model" or Path(value).is_dir())
        }
        return self.model_copy(update=whole)


_hints = get_type_hints(Settings)

ServerArguments = create_model(
    "ServerArguments",
    __base__=_Arguments,
    __doc__="The fields of ``Settings``, and the model, its edits, its device and the file of the admin token.",
    **{
        each.name: _setting(_hints[each.name], each.default)
        for each in fields(Settings)
        if each.name not in (SECRET, "model")
    },
)
