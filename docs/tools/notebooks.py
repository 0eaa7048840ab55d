"""Execute the tutorials and write each as Markdown with its pictures: ``python docs/tools/notebooks.py --output DIR``.

A notebook runs in an empty folder, as its reader would run it. A cell that raises ends the build, and so does a
notebook that takes longer than ``--limit`` seconds.
"""

from __future__ import annotations

import argparse
import base64
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

SOURCES = Path(__file__).parents[1] / "tutorials"
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def execute(source: Path) -> Any:
    """Return the notebook at ``source`` with the outputs of its cells."""
    notebook = nbformat.read(source, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    return notebook


def markdown_of(notebook: Any, name: str) -> tuple[str, dict[str, bytes]]:
    """Return the page of an executed notebook, and its pictures by their file names, which begin with ``name``."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                file = f"{name}-{len(pictures) + 1}.png"
                pictures[file] = base64.b64decode(data["image/png"])
                parts.append(f"![What the cell above shows]({file})")
            elif (text := _text_of(output)).strip():
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n", pictures


def _text_of(output: Any) -> str:
    if output.output_type == "stream":
        return COLOURS.sub("", output.text) if output.name == "stdout" else ""
    return COLOURS.sub("", output.get("data", {}).get("text/plain", ""))


def main() -> int:
    """Execute the notebooks; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the pages and their pictures")
    parser.add_argument("--limit", type=float, default=180, help="seconds that one notebook may take (default 180)")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    sources = sorted(SOURCES.glob("*.ipynb"))
    for source in sources:
        started = time.perf_counter()
        page, pictures = markdown_of(execute(source), source.stem)
        seconds = time.perf_counter() - started
        print(f"{source.name}: {seconds:.0f} s", file=sys.stderr)
        if seconds > arguments.limit:
            print(f"{source.name} took {seconds:.0f} s, more than {arguments.limit:g}", file=sys.stderr)
            return 1
        for file, content in pictures.items():
            (arguments.output / file).write_bytes(content)
        (arguments.output / f"{source.stem}.md").write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
