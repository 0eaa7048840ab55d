"""``cad-fast serve``: serve pictures over HTTP, every request with its own edits. Its options are the settings."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import sys
from typing import TYPE_CHECKING, Any

from ..extras import require
from ..texts import LogFormatter
from .common import add_model, load, model_of

if TYPE_CHECKING:
    from ..serving.integrations.arguments import ServerArguments

HELP = "serve pictures over HTTP, every request with its own edits"
EXAMPLE = "cad-fast serve zoo:emoji --edit-dir edits --port 8000"
EXTRA = "serve"
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
    parser.add_argument(
        "--proxies",
        nargs="+",
        default=(),
        metavar="ADDRESS",
        help="addresses of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed (default: none)",
    )
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


def proxies_of(arguments: argparse.Namespace) -> list[str]:
    """Return the proxies whose headers are believed. Raise ValueError for what is no address or network."""
    for place in arguments.proxies:
        try:
            ipaddress.ip_network(place)
        except ValueError as error:
            raise ValueError(f"--proxies has {place!r}, expected addresses or networks: {error}") from None
    return list(arguments.proxies)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Serve until SIGTERM or Ctrl-C, then finish the accepted requests: that is no interruption, but the way to end it.

    Raises:
        ImportError: a package is missing. The error names the extra.
        SettingsError: an option does not fit. The error names it as on the command line.
        ValueError: there is no such host, or a proxy is no address.
        RuntimeError: the server could not start, such as for a port in use, which is noticed before the model loads.
    """
    for package in PACKAGES:
        require(package, EXTRA)
    from ..serving.edit_library import EditLibrary
    from ..serving.http.app import make_app
    from ..serving.http.listening import address, bind, make_uvicorn, serve
    from ..serving.server import Server
    from ..serving.settings import SettingsError, read_admin_token

    _log_plainly()
    settings, proxies = settings_of(arguments), proxies_of(arguments)
    token = read_admin_token(settings.admin_token_file)
    sockets = bind(arguments.host, arguments.port)
    try:
        pipeline = load(arguments)
        library = EditLibrary(settings.edit_dir, pipeline, links=settings.edit_links)
        server = Server(pipeline, library, settings, admin_token=token)
        place = address(arguments.host, sockets[0].getsockname()[1])
        names = ", ".join(library.names) or "none"
        print(f"serving {server.served_name} at http://{place} with edits: {names}", file=sys.stderr, flush=True)
        uvicorn_server = make_uvicorn(
            make_app(server),
            drain=settings.drain,
            receive_seconds=settings.receive_timeout,
            proxies=proxies,
            access_log=not arguments.quiet,
        )
        serve(uvicorn_server, sockets)
    except SettingsError as error:
        raise error.spelled(option_of) from None
    finally:
        for each in sockets:
            each.close()
    return {"edits": library.names, "address": place, **model_of(arguments)}


def _log_plainly() -> None:
    """Log to standard error, whatever is in the messages."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
