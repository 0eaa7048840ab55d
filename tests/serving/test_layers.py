"""Imports within cad_fast.serving point down only, and no module imports what is private to another one."""

import ast
from pathlib import Path

import pytest

import cad_fast.serving

ROOT = Path(cad_fast.serving.__file__).parent
SERVING = ("cad_fast", "serving")
# From the top: a module may import what stands below it, and what is in its own folder.
LAYERS = (
    "settings_table",
    "command",
    "integrations",
    "http",
    "answering",
    "server",
    "requests",
    "errors",
    "edit_library",
    "metrics",
    "settings",
    "engine",
)
MODULES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")
WEB = ("fastapi", "starlette", "uvicorn", "ray", "pydantic", "prometheus_client")


def imports_of(path: Path, source: str) -> list[tuple[tuple[str, ...], list[str]]]:
    """Return (module, names) of each import of a module that stands at ``path`` in serving."""
    package, imports = (*SERVING, *path.parts[:-1]), []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imports += [(tuple(each.name.split(".")), []) for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *node.module.split(".")) if node.module else base
            imports.append((module, [each.name for each in node.names]))
    return imports


def faults_of(path: Path, source: str) -> list[str]:
    """Return what is wrong with the imports of a module that stands at ``path`` in serving."""
    layer, faults = LAYERS.index(path.with_suffix("").parts[0]), []
    for module, names in imports_of(path, source):
        dotted = ".".join(module)
        if any(each.startswith("_") and not each.startswith("__") for each in (*module, *names)):
            faults.append(f"{path} imports private {dotted} {names}")
        if LAYERS[layer] == "engine" and module[0] in WEB:
            faults.append(f"{path} imports {dotted}: the engine knows no HTTP")
        if module[:2] == SERVING and LAYERS.index(module[2]) < layer:
            faults.append(f"{path} imports {dotted}, which is above it")
    return faults


def circle_in(graph: dict[tuple[str, ...], set[tuple[str, ...]]]) -> list[tuple[str, ...]]:
    """Return modules that import each other in a circle; none if there is no circle."""
    done: set[tuple[str, ...]] = set()

    def visit(module: tuple[str, ...], trail: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
        if module in trail:
            return trail[trail.index(module) :]
        if module in graph and module not in done:
            for each in graph[module]:
                if circle := visit(each, [*trail, module]):
                    return circle
            done.add(module)
        return []

    return next((circle for module in graph if (circle := visit(module, []))), [])


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_down(path) -> None:
    assert faults_of(path, (ROOT / path).read_text()) == []


def test_there_are_no_circles() -> None:
    graph = {}
    for path in MODULES:
        imports = imports_of(path, (ROOT / path).read_text())
        graph[(*SERVING, *path.with_suffix("").parts)] = {module for module, _ in imports}
    assert circle_in(graph) == []
    jobs, queue = (*SERVING, "engine", "jobs"), (*SERVING, "engine", "fair_queue")
    assert jobs in graph[queue]
    graph[jobs].add(queue)
    assert sorted(circle_in(graph)) == [queue, jobs], "a planted circle is seen"


@pytest.mark.parametrize(
    ("path", "source", "fault"),
    [
        ("server.py", "from .http.app import make_app", "which is above it"),
        ("engine/runs.py", "def f():\n    from ..errors import RequestError", "which is above it"),
        ("engine/jobs.py", "from fastapi import FastAPI", "knows no HTTP"),
        ("http/app.py", "from ..settings import _words", "imports private"),
    ],
)
def test_planted_faults_are_seen(path, source, fault) -> None:
    (message,) = faults_of(Path(path), source)
    assert fault in message
