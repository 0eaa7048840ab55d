"""``cad-fast serve``: its options, which are the settings, and the process that serves."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import sys
from typing import TYPE_CHECKING, Any

from ..extras import require

if TYPE_CHECKING:
    from .integrations.arguments import ServerArguments

EXTRA = "serve"
# Most connections at once. More are answered with 503.
CONNECTIONS = 1000
PACKAGES = ("pydantic", "fastapi", "uvicorn", "prometheus_client", "greenlet")
# The model is given by position, the device with the options of loading.
NO_OPTIONS = ("model", "device")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``cad-fast serve``, but for the model.

    Without pydantic there are no settings to make options of. Any options are then left to ``run``, which names what
    is missing.
    """
    try:
        require("pydantic", EXTRA)
    except ImportError as error:
        parser.add_argument("options", nargs=argparse.REMAINDER, help=str(error).replace("%", "%%"))
        return
    from .integrations.arguments import ServerArguments

    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="default 8000; 0 picks a free one")
    parser.add_argument("--device", default="cpu", help="where the pipeline runs (default cpu)")
    for name in ServerArguments.model_fields:
        if name not in NO_OPTIONS:
            _add_option(parser, ServerArguments, name)


def option_of(name: str) -> str:
    """Return the option for a setting: ``--max-queue`` for ``max_queue``."""
    return name if name == "model" else f"--{name.replace('_', '-')}"


def _add_option(parser: argparse.ArgumentParser, model: type[ServerArguments], name: str) -> None:
    """Add the option for a setting. Its value stays text, which the settings check, and it has no default here."""
    from .settings import SettingInfo

    info = SettingInfo.of(model, name)
    default = "on a loopback address its names, otherwise all" if name == "allowed_hosts" else info.default
    kind = "" if info.is_switch or info.kind == "text" else f"; {info.kind}"
    more: dict[str, Any] = {"help": f"{info.description}{kind} (default: {default.replace('`', '')})"}
    if info.is_switch:
        more["action"] = argparse.BooleanOptionalAction
    elif info.is_list:
        more["nargs"] = "+"
    if not info.is_switch:
        more["metavar"] = (info.unit or name).upper()
    parser.add_argument(option_of(name), default=argparse.SUPPRESS, **more)


def settings_of(arguments: argparse.Namespace) -> ServerArguments:
    """Make the settings that the options stand for.

    Raises:
        SettingsError: an option does not fit. The error names it as on the command line.
    """
    from .integrations.arguments import ServerArguments
    from .settings import SettingsError

    given = {name: getattr(arguments, name) for name in ServerArguments.model_fields if hasattr(arguments, name)}
    if "allowed_hosts" not in given and _is_loopback(arguments.host):
        given["allowed_hosts"] = tuple(dict.fromkeys(["localhost", "127.0.0.1", arguments.host]))
    try:
        return ServerArguments(**given)
    except SettingsError as error:
        raise error.spelled(option_of) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Serve until SIGTERM or SIGINT, then finish the accepted requests.

    Raises:
        ImportError: a package is missing. The error names the extra.
        SettingsError: an option does not fit. The error names it as on the command line.
    """
    for package in PACKAGES:
        require(package, EXTRA)
    import uvicorn

    from .http.app import make_app
    from .server import load_server
    from .settings import SettingsError, read_admin_token

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = settings_of(arguments)
    try:
        token = read_admin_token(settings.admin_token_file)
        server = load_server(settings, settings.edit_dir, arguments.device, token)
    except SettingsError as error:
        raise error.spelled(option_of) from None
    names = ", ".join(server.library.names) or "none"
    print(f"serving {settings.served_name} with edits: {names}", file=sys.stderr, flush=True)
    config = uvicorn.Config(
        make_app(server),
        host=arguments.host,
        port=arguments.port,
        timeout_graceful_shutdown=int(settings.drain) + 5,
        limit_concurrency=CONNECTIONS,
        h11_max_incomplete_event_size=64 * 1024,
        log_config=None,
        access_log=not arguments.quiet,
    )
    uvicorn.Server(config).run()
    return {"model": settings.served_name, "edits": server.library.names}
