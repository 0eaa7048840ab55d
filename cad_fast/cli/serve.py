"""``cad-fast serve``: serve pictures over HTTP, every request with its own edits."""

from __future__ import annotations

import argparse
import functools
from typing import Any

from .common import add_model, load, model_of

HELP = "serve pictures over HTTP, every request with its own edits"
EXAMPLE = "cad-fast serve zoo:emoji --edit-dir edits --port 8000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, and the options of the server."""
    from ..serving.command import add_arguments as add_options

    add_model(parser)
    add_options(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Serve until the process is asked to end, by Ctrl-C or SIGTERM: that is no interruption, but the way to end it."""
    from ..serving.command import run as serve

    try:
        result = serve(arguments, functools.partial(load, arguments))
    except KeyboardInterrupt:  # which depends on uvicorn's version
        if not hasattr(arguments, "loading"):
            raise
        result = {"model": arguments.model}
    except SystemExit as stop:  # by uvicorn, when it cannot start; it has said why
        if stop.code not in (0, None):
            raise RuntimeError("the server could not start; its log says why") from stop
        raise
    return {**result, **model_of(arguments)}
