"""The tables of settings in the documentation: ``python -m cad_fast.serving.settings_table`` prints them."""

from __future__ import annotations

from .integrations.arguments import ServerArguments
from .integrations.ray_serve import RayArguments
from .settings import Checked, SettingInfo

HEADER = "| Setting | Value | Default | Meaning |\n|---|---|---|---|\n"


def table(model: type[Checked], but: type[Checked] | None = None) -> str:
    """Write the settings of ``model`` as a table in Markdown, without those that ``but`` has as well."""
    names = [name for name in model.model_fields if but is None or name not in but.model_fields]
    return HEADER + "".join(_row(SettingInfo.of(model, name)) for name in names)


def _row(info: SettingInfo) -> str:
    default = "must be given" if info.required else info.default
    return f"| `{info.name}` | {info.kind} | {default} | {info.description} |\n"


def server_table() -> str:
    """Write the table of what every server is given."""
    return table(ServerArguments)


def ray_table() -> str:
    """Write the table of what Ray Serve is given beyond that."""
    return table(RayArguments, but=ServerArguments)


if __name__ == "__main__":
    print(server_table())
    print(ray_table())
