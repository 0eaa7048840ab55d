"""Imports point down only: no circle of packages or files, nothing private of another module, no printing below."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import cad_fast

ROOT = Path(cad_fast.__file__).parent
# From the bottom. What stands on one line may not import one another.
LAYERS = (
    ("version", "choices", "envs", "texts"),
    ("extras", "remembered"),
    ("files",),
    ("diffusion",),
    ("kernels",),
    ("ops",),
    ("components",),
    ("recording",),
    ("objectives",),
    ("row_engine",),
    ("attribution",),
    ("edits",),
    ("evaluation",),
    ("zoo",),
    ("loading",),
    ("report",),
    ("making", "search"),
    ("auditing",),
    ("demo", "integrations", "serving"),
    ("cli",),
)
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
    if path != ROOT / "__init__.py"
}
# Where arguments are parsed and results printed. The recipes of training are programs, and so are what writes a model
# repository for Triton and what makes the tables of the docs.
PROGRAMS = ("cli", "zoo.training", "serving.integrations.triton_backend", "serving.settings_table")


def imports_of(name: str, path: Path) -> list[tuple[str, str]]:
    """Return (module within cad_fast, name imported from it) of every import, those inside functions too."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    pairs = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = package[: len(package) - node.level + 1]
            module = ".".join([*above, *(node.module.split(".") if node.module else [])])
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "cad_fast":
            module = (node.module or "").removeprefix("cad_fast").removeprefix(".")
        else:
            continue
        for alias in node.names:
            within = f"{module}.{alias.name}".removeprefix(".")
            pairs.append((within, "") if within in MODULES else (module, alias.name))
    return pairs


GRAPH = {name: imports_of(name, path) for name, path in MODULES.items()}


def faults_of(name: str, imports: list[tuple[str, str]]) -> list[str]:
    """Return what is wrong with the imports of a module."""
    faults = []
    part = name.split(".")[0]
    for module, imported in imports:
        below = module.split(".")[0]
        private = [word for word in (*module.split("."), imported) if word.startswith("_") and word != "__version__"]
        if private:
            faults.append(f"{name} imports {private[0]} of {module}")
        if below and below != part and LEVELS[below] >= LEVELS[part]:
            faults.append(f"{name} imports {module}, which is not below it")
    return faults


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """Return modules that import one another in a circle; none if there is no circle."""
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> list[str]:
        if module in trail:
            return trail[trail.index(module) :]
        if module not in done:
            for below in sorted(graph.get(module, ())):
                if circle := visit(below, [*trail, module]):
                    return circle
            done.add(module)
        return []

    return next((circle for module in graph if (circle := visit(module, []))), [])


@pytest.mark.parametrize("part", sorted(LEVELS))
def test_imports_point_down(part) -> None:
    faults = []
    for name, imports in GRAPH.items():
        if name.split(".")[0] == part:
            faults += faults_of(name, imports)
    assert faults == []


def test_every_part_has_a_layer_and_the_root_is_small() -> None:
    parts = {name.split(".")[0] for name in MODULES}
    assert parts == set(LEVELS)
    assert len([name for name in MODULES if "." not in name and MODULES[name].name != "__init__.py"]) <= 10


def test_there_are_no_circles() -> None:
    graph = {name: {module for module, _ in imports} - {name} for name, imports in GRAPH.items()}
    # A package's own file names what is below it; those files do not import it.
    assert circle_in(graph) == []
    graph["version"] = {"cli.main"}
    assert "version" in circle_in(graph), "a planted circle is seen"


@pytest.mark.parametrize(
    ("name", "imported", "fault"),
    [
        ("recording.data", ("edits.edit", "Edit"), "not below it"),
        ("version", ("choices", "KINDS"), "not below it"),
        ("cli.erase", ("making", "_choose"), "imports _choose"),
    ],
)
def test_planted_faults_are_seen(name, imported, fault) -> None:
    assert any(fault in each for each in faults_of(name, [imported]))


def test_only_programs_parse_arguments_and_print() -> None:
    faults = []
    for name, path in MODULES.items():
        if name.startswith(PROGRAMS):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import) and any(alias.name == "argparse" for alias in node.names):
                faults.append(f"{name} imports argparse")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                faults.append(f"{name} prints in line {node.lineno}")
    assert faults == []
