"""The documentation as its tests read it: pages, links, code blocks and command lines."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A code block: the page it is on, its language, and its text."""

    page: str
    language: str
    text: str


def pages() -> dict[str, str]:
    """Return the Markdown of every page by its path in the repository; of a notebook the text of its cells."""
    files = [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
    ]
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in files}
    for path in sorted((ROOT / "docs").rglob("*.ipynb")):
        texts[str(path.relative_to(ROOT))] = _notebook(path)
    return texts


def _notebook(path: Path) -> str:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = [("".join(cell["source"]), cell["cell_type"] == "code") for cell in cells]
    return "\n\n".join(f"```python\n{text}\n```" if is_code else text for text, is_code in texts)


def blocks() -> list[Block]:
    """Return every code block of every page."""
    return [Block(page, match[2].strip(), match[3]) for page, text in pages().items() for match in FENCE.finditer(text)]


def prose(text: str) -> str:
    """Return a page without its code blocks."""
    return FENCE.sub("", text)


def links(text: str) -> list[str]:
    """Return the targets of the links of a page that lead to files, without their anchors."""
    targets = [match[1].split("#")[0] for match in LINK.finditer(prose(text))]
    return [target for target in targets if target and "://" not in target]


def commands(block: Block) -> list[str]:
    """Return the lines of a block that call cad-fast, continued lines joined, comments cut."""
    lines = block.text.replace("\\\n", " ").splitlines()
    lines = [re.sub(r"\s+#.*", "", line).strip() for line in lines]
    return [line for line in lines if line.startswith("cad-fast ")]
