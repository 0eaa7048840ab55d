"""What the documentation says exists: files, commands, names."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.docs import pages as docs_pages
from tests.docs.pages import ROOT

# Pages of the site that the build makes.
MADE = {
    *("docs/changelog.md", "docs/contributing.md", "docs/examples.md", "docs/zoo.md", "docs/zoo-flow.md"),
    "docs/cli/index.md",
    *(f"docs/tutorials/{path.stem}.md" for path in (ROOT / "docs" / "tutorials").glob("*.ipynb")),
}
# Paths in prose, such as `csrc/cpu/masked_linear.cpp`, begin with a folder of the repository.
FOLDERS = ("bench", "cad_fast", "csrc", "docs", "examples", "kernels", "tests")
PLACEHOLDER = "foo"
PATH = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]+)`")


def missing_links(page: str, text: str) -> list[str]:
    """Return the links of a page that lead nowhere."""
    from_commands = {f"docs/cli/{words[0]}.md" for words in commands_of(parser())}
    absent = []
    for target in docs_pages.links(text):
        path = Path(ROOT / page).parent / target
        name = path.resolve().relative_to(ROOT).as_posix()
        if not path.exists() and name not in MADE | from_commands:
            absent.append(target)
    return absent


def missing_paths(text: str) -> list[str]:
    """Return the paths in the prose of a page that do not exist."""
    paths = PATH.findall(docs_pages.prose(text))
    return [path for path in paths if PLACEHOLDER not in Path(path).stem and not (ROOT / path).exists()]


def parser() -> Any:
    """Return the real parser of the command line."""
    from cad_fast.cli import build_parser

    return build_parser()


def commands_of(root: Any) -> list[tuple[str, ...]]:
    """Return the words of every command below a parser."""
    return [
        (word, *rest)
        for action in root._actions
        if hasattr(action, "choices") and isinstance(action.choices, dict)
        for word, command in action.choices.items()
        for rest in [(), *commands_of(command)]
    ]


def refused(line: str) -> str | None:
    """Return why the real parser refuses a command line; None if it takes it."""
    words = shlex.split(line)[1:]
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            parser().parse_args(words)
    except SystemExit as error:
        return None if error.code == 0 else errors.getvalue().strip().splitlines()[-1]
    return None


def unknown_names(source: str) -> list[str]:
    """Return the dotted names of ``cad_fast`` in Python source that its reader could not use.

    Attributes of ``cad_fast`` and what is imported from its modules count; what a value has at run time does not.
    """
    public = set(importlib.import_module("cad_fast").__all__)
    unknown = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "cad_fast":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            unknown.update(name for name in names if not exists(name))
        elif isinstance(node, ast.Attribute) and (dotted := dotted_name(node)) and dotted.startswith("cad_fast."):
            # A module of the package is its attribute only once something has imported it.
            if dotted.split(".")[1] not in public or not exists(dotted):
                unknown.add(dotted)
    return sorted(unknown)


def dotted_name(node: ast.expr) -> str | None:
    """Return ``a.b.c`` for the expression of that name, None for any other."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted_name(node.value)):
        return f"{before}.{node.attr}"
    return None


def exists(name: str) -> bool:
    """Whether a dotted name leads to a module or to something in one."""
    parts = name.split(".")
    value: Any = importlib.import_module(parts[0])
    for place, part in enumerate(parts[1:], 2):
        if hasattr(value, part):
            value = getattr(value, part)
            continue
        try:
            value = importlib.import_module(".".join(parts[:place]))
        except ImportError:
            return False
    return True


@pytest.mark.parametrize("page", docs_pages.pages())
def test_paths_exist(page):
    text = docs_pages.pages()[page]
    assert not missing_links(page, text)
    assert not missing_paths(text)


@pytest.mark.parametrize("page", docs_pages.pages())
def test_command_lines_parse(page):
    lines = [line for block in docs_pages.blocks() if block.page == page for line in docs_pages.commands(block)]
    assert {line: why for line in lines if (why := refused(line))} == {}


@pytest.mark.parametrize("page", docs_pages.pages())
def test_python_blocks_compile_and_name_what_exists(page):
    for block in docs_pages.blocks():
        if block.page == page and block.language == "python":
            compile(block.text, f"{page}, a code block", "exec")
            assert unknown_names(block.text) == [], block.text


def test_readme_is_short_and_shows_the_two_commands():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 120
    assert re.search(r"^make demo\b", readme, re.MULTILINE)
    assert re.search(r"^make test\b", readme, re.MULTILINE)


def api_entries() -> set[str]:
    """Return the names that have an entry on a page of the API."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.md"))
    return set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))


# Of packages with many parts: all their public names have an entry, in these or as members of an entry.
PACKAGES = ("cad_fast", "cad_fast.attribution", "cad_fast.edits", "cad_fast.evaluation", "cad_fast.ops")


def public_names(package: str) -> list[str]:
    """Return the names that a package offers: its ``__all__``, or all that it has imported from its own modules."""
    module = importlib.import_module(package)
    if hasattr(module, "__all__"):
        return [name for name in module.__all__ if not name.startswith("__")]
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith(f"{package}.")
    ]


def without_entry(packages: tuple[str, ...], entries: set[str]) -> list[str]:
    """Return the public names that have no entry, under the package's name or the top level's."""
    top = set(public_names("cad_fast"))
    absent = []
    for package in packages:
        for name in public_names(package):
            names = {f"{package}.{name}"} | ({f"cad_fast.{name}"} if name in top else set())
            if not names & entries:
                absent.append(f"{package}.{name}")
    return absent


def test_every_public_name_has_an_entry():
    assert without_entry(PACKAGES, api_entries()) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_have_public_names(package):
    assert len(public_names(package)) > 5


def test_every_entry_exists():
    assert [name for name in sorted(api_entries()) if not exists(name)] == []


def test_the_checks_notice_mistakes():
    assert missing_links("docs/index.md", "[a](nowhere.md), [b](install.md#pip), [c](../README.md)") == ["nowhere.md"]
    assert missing_paths("`csrc/nothing.cpp`, `csrc/cpu/simd.h`") == ["csrc/nothing.cpp"]
    assert refused("cad-fast env --no-such-option")
    assert refused("cad-fast env --json") is None
    source = (
        "cad_fast.Scores\ncad_fast.Nothing\ncad_fast.report.write_report\nfrom cad_fast.ops import no_op, pack_bits"
    )
    assert unknown_names(source) == [
        "cad_fast.Nothing",
        "cad_fast.ops.no_op",
        "cad_fast.report",
        "cad_fast.report.write_report",
    ]
    assert "cad_fast.ops.pack_bits" in without_entry(("cad_fast.ops",), api_entries() - {"cad_fast.ops.pack_bits"})
    block = docs_pages.Block("page", "", "cad-fast env \\\n    --json  # prints\ncad-fastidious\n")
    assert docs_pages.commands(block) == ["cad-fast env      --json"]
