"""A plugin of pytest that writes every test's end into a file at once, and runs some of each kind first.

A run that is cut short has then tried something of everything, and its failures are known.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

FIRST = ("test_row_engine.py", "test_samples_of_operators.py")
"""They run every operator, the way the library does."""
IN_TURNS = 16
MOST = 3000
"""Characters of a failure: its end, where the assertion is."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--test-log", default=None, help="file to which a line of JSON is added for every test")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of everything, then a few cases of every test in turns, then the rest, tests with many cases last.

    The order is the same in every worker of xdist.
    """
    if config.getoption("--test-log") is None:
        return
    sizes: Counter[str] = Counter()
    turns = {}
    for item in items:
        test = item.nodeid.split("[")[0]
        turns[item] = sizes[test]
        sizes[test] += 1

    def order(item: pytest.Item) -> tuple[bool, int, int]:
        rest = turns[item] >= IN_TURNS
        return item.path.name not in FIRST, sizes[item.nodeid.split("[")[0]] if rest else 0, turns[item]

    items.sort(key=order)


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--test-log")
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Log(Path(path)), "test-log")


class Log:
    """Lives in the process that hears of all tests."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, **line: Any) -> None:
        with self.path.open("ab", buffering=0) as file:
            file.write((json.dumps(line) + "\n").encode())

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.add(test=report.nodeid, outcome="failed", when=report.when, text=_text(report))
        elif report.skipped:
            self.add(test=report.nodeid, outcome="skipped")
        elif report.when == "call":
            self.add(test=report.nodeid, outcome="passed", seconds=round(report.duration, 3))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.add(test=report.nodeid or "collection", outcome="failed", when="collect", text=_text(report))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        self.add(collected=len(ids))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if session.items:
            self.add(collected=len(session.items))


def _text(report: Any) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    said = f"{crash.path}:{crash.lineno}: {crash.message}\n" if crash is not None else ""
    return said[:MOST] + report.longreprtext[-MOST:]
