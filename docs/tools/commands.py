"""The pages of the command line, from its parsers: one page per command, with what its ``--help`` prints."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator

WIDTH = 100


def commands_of(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield every command below ``parser`` in its order: the words after the program's name, and its parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, command in action.choices.items():
                yield word, command
                for words, nested in commands_of(command):
                    yield f"{word} {words}", nested


def help_of(parser: argparse.ArgumentParser) -> str:
    """Return what ``--help`` prints, as wide as the site, without colours."""
    with _environment(COLUMNS=str(WIDTH), NO_COLOR="1"):
        return parser.format_help().rstrip()


def pages() -> dict[str, str]:
    """Return the Markdown of every page of the command line by its path in the site."""
    from cad_fast.cli import build_parser

    parser = build_parser()
    commands = dict(commands_of(parser))
    top = [words for words in commands if " " not in words]
    written = {}
    for words in top:
        below = [name for name in commands if name == words or name.startswith(f"{words} ")]
        parts = [f"# cad-fast {words}\n"]
        for name in below:
            heading = "" if name == words else f"## cad-fast {name}\n\n"
            parts.append(f"{heading}```text\n{help_of(commands[name])}\n```\n")
        written[f"cli/{words}.md"] = "\n".join(parts)
    rows = [f"| [`cad-fast {words}`]({words}.md) | {summary(commands[words])} |" for words in top]
    written["cli/index.md"] = INDEX.format(rows="\n".join(rows), help=help_of(parser))
    return written


def summary(parser: argparse.ArgumentParser) -> str:
    """Return the first line of a command's description."""
    return (parser.description or "").strip().splitlines()[0]


INDEX = """# Command line

Every command prints its options and an example with `--help`. `--json` prints results for programs. Exit codes are 0
(done), 1 (a run or a check failed), 2 (wrong input) and 130 (interrupted). The pages below are made from the parsers.

| Command | What it does |
|---|---|
{rows}

```text
{help}
```
"""


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
