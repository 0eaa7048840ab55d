"""What mkdocs calls while it builds the site: pages that are made, and files of the repository beside ``docs/``."""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

TOOLS = Path(__file__).parent
REPOSITORY = TOOLS.parents[1]
NOTEBOOKS = REPOSITORY / "build" / "notebooks"
# Files outside docs/ that are pages of the site, by their path in the repository.
OUTSIDE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples/README.md": "examples.md",
    "cad_fast/zoo/emoji/README.md": "zoo.md",
}
LINK = re.compile(r"(\]\()([^)\s#]+)([^)\s]*\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the command line, the executed tutorials and the files outside ``docs/``."""
    made = {**_commands(), **_outside()}
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    for source in sorted((TOOLS.parent / "tutorials").glob("*.ipynb")):
        page = NOTEBOOKS / f"{source.stem}.md"
        if not page.is_file():
            raise PluginError(f"{source.name} was not executed: run `make notebooks`, which writes {page}")
        for file in [page, *sorted(NOTEBOOKS.glob(f"{source.stem}-*.png"))]:
            files.append(File.generated(config, f"tutorials/{file.name}", content=file.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to files outside ``docs/`` to their pages."""
    return relinked(markdown, posixpath.join("docs", page.file.src_uri)) if page.file.generated_by is None else markdown


def relinked(markdown: str, path: str) -> str:
    """Return ``markdown`` of the file at ``path`` in the repository with its links made to fit the site."""
    here = posixpath.dirname(path)
    page = OUTSIDE.get(path) or posixpath.relpath(path, "docs")

    def replace(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(here, match[2]))
        if "://" in match[2]:
            return match[0]
        if target in OUTSIDE:
            place = OUTSIDE[target]
        elif target == "README.md":
            place = "index.md"
        elif path in OUTSIDE and target.startswith("docs/"):
            place = posixpath.relpath(target, "docs")
        else:
            return match[0]
        return f"{match[1]}{posixpath.relpath(place, posixpath.dirname(page) or '.')}{match[3]}"

    return LINK.sub(replace, markdown)


def _commands() -> dict[str, str]:
    sys.path.insert(0, str(TOOLS))
    sys.path.insert(0, str(REPOSITORY))
    try:
        import commands

        return commands.pages()
    finally:
        del sys.path[:2]


def _outside() -> dict[str, str]:
    pages = {}
    for path, page in OUTSIDE.items():
        text = (REPOSITORY / path).read_text()
        if text.startswith("---\n"):  # the front matter of a model card
            text = text.split("---\n", 2)[2]
        pages[page] = relinked(text, path)
    return pages

