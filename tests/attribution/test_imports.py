"""Modules of attribution import public names only, and in no circle; read from their sources."""

from __future__ import annotations

import ast
from pathlib import Path

import cad_fast.attribution

ROOT = Path(cad_fast.attribution.__file__).parent
PACKAGE = "cad_fast.attribution"


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([PACKAGE, *parts]).removesuffix(".__init__")


def imports_of(path: Path) -> list[tuple[str, list[str]]]:
    """(module, names imported from it) of every ``from ... import``, those inside functions too."""
    package = name_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    pairs = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *(node.module or "").split(".")]).rstrip(".")
            pairs.append((module, [alias.name for alias in node.names]))
    return pairs


def test_imports() -> None:
    graph: dict[str, set[str]] = {}
    for path in ROOT.rglob("*.py"):
        for module, names in imports_of(path):
            private = [name for name in names if name.startswith("_") and name != "__version__"]
            assert not private, f"{name_of(path)} imports {private} of {module}"
            if module.startswith(f"{PACKAGE}."):
                graph.setdefault(name_of(path), set()).add(module)
    assert len(graph) > 15

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, f"a circle: {' -> '.join((*above, module))}"
        for below in graph.get(module, ()):
            visit(below, (*above, module))

    for module in graph:
        visit(module, ())
