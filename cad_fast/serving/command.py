"""``cad-fast serve``: its arguments, and the process that serves."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import envs
from ..extras import require
from .settings import Settings

EXTRA = "serve"
# Connections at once; more are answered with 503.
CONNECTIONS = 1000
PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "greenlet")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``cad-fast serve``, beside the model."""
    default = Settings()
    parser.add_argument("--edit-dir", help="folder whose subfolders are the edits that requests may name")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="default 8000; 0 picks a free one")
    numbers = (
        ("--max-batch-size", "max_batch_size", "pictures in one batch"),
        ("--max-queue", "max_queue", "pictures that may wait; more are turned away"),
        ("--max-steps", "max_steps", "denoising steps per picture"),
        ("--max-edits", "max_edits", "edits per request"),
        ("--max-prompt", "max_prompt", "characters of a prompt"),
    )
    for option, name, text in numbers:
        parser.add_argument(option, type=int, default=getattr(default, name), help=f"{text} (default %(default)s)")
    most = f"pictures per request (default {default.max_n}, or as many as may wait)"
    parser.add_argument("--max-n", type=int, help=most)
    parser.add_argument(
        "--batch-timeout-ms", type=float, default=5.0, help="how long an idle server waits for company (default 5)"
    )
    parser.add_argument("--deadline", type=float, default=default.deadline, help="seconds per request (default 120)")
    parser.add_argument("--drain", type=float, default=default.drain, help="seconds to finish on SIGTERM (default 30)")
    parser.add_argument("--max-strength", type=float, default=default.max_strength, help="of an edit (default 4)")
    parser.add_argument("--steps", type=int, help="denoising steps where a request names none")
    parser.add_argument("--guidance-scale", type=float, help="guidance where a request names none")
    parser.add_argument("--size", nargs="+", help="sizes that requests may choose, WIDTHxHEIGHT, the first by default")
    parser.add_argument("--allowed-host", nargs="+", help="Host headers to answer (default on loopback: its names)")
    parser.add_argument("--admin-token-file", help="file with the token of the admin routes (default: there are none)")


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings that the arguments and CAD_FAST_ADMIN_TOKEN stand for. Raises ValueError, FileNotFoundError."""
    hosts = arguments.allowed_host
    if hosts is None and _is_loopback(arguments.host):
        hosts = ["localhost", "127.0.0.1", arguments.host]
    return Settings(
        model=arguments.model,
        max_batch_size=arguments.max_batch_size,
        batch_timeout=arguments.batch_timeout_ms / 1000,
        max_queue=arguments.max_queue,
        deadline=arguments.deadline,
        drain=arguments.drain,
        sizes=tuple(arguments.size) if arguments.size else None,
        steps=arguments.steps,
        guidance_scale=arguments.guidance_scale,
        max_steps=arguments.max_steps,
        max_n=min(Settings.max_n, arguments.max_queue) if arguments.max_n is None else arguments.max_n,
        max_prompt=arguments.max_prompt,
        max_edits=arguments.max_edits,
        max_strength=arguments.max_strength,
        admin_token=admin_token(arguments.admin_token_file),
        allowed_hosts=None if hosts is None else tuple(dict.fromkeys(hosts)),
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def admin_token(path: str | None) -> str | None:
    """The token in the file, or in CAD_FAST_ADMIN_TOKEN. Raises ValueError for a short one, FileNotFoundError."""
    token = Path(path).read_text(encoding="utf-8").strip() if path else envs.get("CAD_FAST_ADMIN_TOKEN") or None
    if token is not None and len(token) < 16:
        raise ValueError("the admin token has fewer than 16 characters: take a longer one")
    return token


def run(arguments: argparse.Namespace, load: Callable[[], Any]) -> dict[str, Any]:
    """Serve what ``load`` loads until SIGTERM or SIGINT, then finish what was accepted.

    Raises ImportError naming the extra.
    """
    for package in PACKAGES:
        require(package, EXTRA)
    import uvicorn

    from .app import make_app
    from .server import load_server

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = settings_of(arguments)
    server = load_server(settings, arguments.edit_dir, load=load)
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
