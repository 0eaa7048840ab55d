"""Parse the arguments, run one command, and turn what it returns or raises into output and an exit code.

Building the parsers imports no torch: a command's module imports what computes inside its ``run``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from types import ModuleType

from ..texts import printable
from ..version import __version__
from . import amplify, attribute, audit, budget, demo, dial, edit, env, erase, evaluate, generate, inspect, serve
from .common import EXIT_CODES, add_command

# Each has HELP, EXAMPLE, add_arguments(parser) and run(arguments).
COMMANDS: dict[str, ModuleType] = {
    "erase": erase,
    "amplify": amplify,
    "inspect": inspect,
    "attribute": attribute,
    "edit": edit,
    "generate": generate,
    "dial": dial,
    "audit": audit,
    "budget": budget,
    "evaluate": evaluate,
    "serve": serve,
    "demo": demo,
    "env": env,
}
WRONG_INPUT = (
    ValueError,
    TypeError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    PermissionError,
    ImportError,
)
FAILED = (RuntimeError, OSError, MemoryError)


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands; what it parses has the command's function as ``run``.

    ``only``: the command whose arguments are wanted. The others are known by name alone.
    """
    parser = argparse.ArgumentParser(
        prog="cad-fast", description="Component attribution in diffusion models.", epilog=EXIT_CODES
    )
    parser.add_argument("--version", action="version", version=f"cad-fast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        add_command(commands, name, module, known=only in (None, name))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    name = given[0] if given else ""
    try:
        arguments = build_parser(only=name).parse_args(given)
        name = arguments.full_name
        result = arguments.run(arguments)
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "interrupted", file=sys.stderr)
        return 130
    except WRONG_INPUT as error:
        print(printable(f"cad-fast {name}: error: {error}"), file=sys.stderr)
        return 2
    except FAILED as error:
        print(printable(f"cad-fast {name}: failed: {error}"), file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(result, indent=2))
    return int(result.get("failed", 0) > 0)
