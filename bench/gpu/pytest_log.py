"""A plugin of pytest that writes every test's end into a file at once, and runs one of each kind first.

A run that is cut short has then tried something of everything, and its failures are known.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

MOST = 3000
"""Characters of a failure: its end, where the assertion is."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--test-log", default=None, help="file to which a line of JSON is added for every test")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The first case of every test, then the second, and so on; the same in every worker of xdist."""
    if config.getoption("--test-log") is None:
        return
    seen: Counter[str] = Counter()
    turn = {}
    for item in items:
        test = item.nodeid.split("[")[0]
        turn[item] = seen[test]
        seen[test] += 1
    items.sort(key=turn.__getitem__)


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
