"""What mkdocs calls while it builds the site: pages that are made, and files of the repository beside ``docs/``."""

from __future__ import annotations

import functools
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
    "cad_fast/zoo/emoji-flow/README.md": "zoo-flow.md",
}
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Put a page for every command into the navigation."""
    for entry in config.nav:
        if isinstance(entry, dict) and "Command line" in entry:
            words = [Path(path).stem for path in _commands() if not path.endswith("index.md")]
            entry["Command line"] = ["cli/index.md", *({word: f"cli/{word}.md"} for word in words)]
    return config


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
        text, link, anchor = match[1], match[2], match[3] or ""
        target = posixpath.normpath(posixpath.join(here, link))
        if "://" in link:
            return match[0]
        if target in OUTSIDE:
            place = OUTSIDE[target]
        elif target == "README.md":
            place = "index.md"
        elif path in OUTSIDE and target.startswith("docs/"):
            place = posixpath.relpath(target, "docs")
        elif not target.startswith(("docs/", "..")) and (REPOSITORY / target).exists():
            return f"{text} (`{target}`)"  # in the repository, but no page of the site
        else:
            return match[0]
        return f"[{text}]({posixpath.relpath(place, posixpath.dirname(page) or '.')}{anchor})"

    return LINK.sub(replace, markdown)


@functools.cache
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
