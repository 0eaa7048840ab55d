"""``cad-fast serve``: serve pictures over HTTP, every request with its own edits. Its options are the settings."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import sys
from typing import TYPE_CHECKING, Any

from ..extras import require
from .common import add_model, load, model_of

if TYPE_CHECKING:
    from ..serving.integrations.arguments import ServerArguments

HELP = "serve pictures over HTTP, every request with its own edits"
EXAMPLE = "cad-fast serve zoo:emoji --edit-dir edits --port 8000"
EXTRA = "serve"
# Most connections at once. More are answered with 503.
CONNECTIONS = 1000
PACKAGES = ("pydantic", "fastapi", "uvicorn", "prometheus_client", "greenlet")
# The model is given by position, the device with the options of loading.
NO_OPTIONS = ("model", "device")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, how it is loaded, and the options of the server.

    Without pydantic there are no settings to make options of. Any options are then left to ``run``, which names what
    is missing.
    """
    add_model(parser)
    try:
        require("pydantic", EXTRA)
    except ImportError as error:
        parser.add_argument("options", nargs=argparse.REMAINDER, help=str(error).replace("%", "%%"))
        return
    from ..serving.integrations.arguments import ServerArguments

    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="default 8000; 0 picks a free one")
    for name in ServerArguments.model_fields:
        if name not in NO_OPTIONS:
            _add_option(parser, ServerArguments, name)


def option_of(name: str) -> str:
    """Return the option for a setting: ``--max-queue`` for ``max_queue``."""
    return name if name == "model" else f"--{name.replace('_', '-')}"


def _add_option(parser: argparse.ArgumentParser, model: type[ServerArguments], name: str) -> None:
    """Add the option for a setting. Its value stays text, which the settings check, and it has no default here."""
    from ..serving.settings import SettingInfo

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
    from ..serving.integrations.arguments import ServerArguments
    from ..serving.settings import SettingsError

    given = {name: getattr(arguments, name) for name in ServerArguments.model_fields if hasattr(arguments, name)}
    del given["device"]  # an option of loading, which is not the settings' here
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
    """Serve until SIGTERM or Ctrl-C, then finish the accepted requests: that is no interruption, but the way to end it.

    Raises:
        ImportError: a package is missing. The error names the extra.
        SettingsError: an option does not fit. The error names it as on the command line.
        RuntimeError: the server could not start.
    """
    for package in PACKAGES:
        require(package, EXTRA)
    import uvicorn

    from ..serving.edit_library import EditLibrary
    from ..serving.http.app import make_app
    from ..serving.server import Server
    from ..serving.settings import SettingsError, read_admin_token

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = settings_of(arguments)
    try:
        token = read_admin_token(settings.admin_token_file)
        pipeline = load(arguments)
        server = Server(
            pipeline, EditLibrary(settings.edit_dir, pipeline, links=settings.edit_links), settings, admin_token=token
        )
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
    try:
        uvicorn.Server(config).run()
    except KeyboardInterrupt:  # which comes through or not by uvicorn's version
        pass
    except SystemExit as stop:  # by uvicorn, when it cannot start; it has said why
        if stop.code not in (0, None):
            raise RuntimeError("the server could not start; its log says why") from stop
        raise
    return {"edits": server.library.names, **model_of(arguments)}
