"""``cad-fast env``: what is installed, built and used on this machine."""

from __future__ import annotations

import argparse
from typing import Any

from .common import say

HELP = "what is installed, built and used on this machine"
EXAMPLE = "cad-fast env --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Versions and backends."""
    from ..ops import backend_report
    from ..version import versions

    report = {"versions": versions(), "backends": backend_report()}
    say(arguments, _indented(report))
    return report


def _indented(value: Any, depth: int = 0) -> str:
    if not isinstance(value, dict):
        return str(value)
    lines = []
    for key, entry in value.items():
        nested = isinstance(entry, dict) and entry
        lines.append("  " * depth + f"{key}:" + (f"\n{_indented(entry, depth + 1)}" if nested else f" {entry}"))
    return "\n".join(lines)
