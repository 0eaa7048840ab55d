"""Execute the tutorials and write each as Markdown with its pictures: ``python docs/tools/notebooks.py --output DIR``.

A notebook runs in an empty folder, as its reader would run it. A cell that raises ends the build, and so does a
notebook that takes longer than ``--limit`` seconds.
"""

from __future__ import annotations

import argparse
import base64
import re
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
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


def write(source: Path, folder: Path) -> float:
    """Execute the notebook at ``source``, write its page and pictures into ``folder``, return the seconds it took."""
    started = time.perf_counter()
    page, pictures = markdown_of(execute(source), source.stem)
    for file, content in pictures.items():
        (folder / file).write_bytes(content)
    (folder / f"{source.stem}.md").write_text(page, encoding="utf-8")
    return time.perf_counter() - started


def main() -> int:
    """Execute the notebooks, two at a time; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the pages and their pictures")
    parser.add_argument("--limit", type=float, default=180, help="seconds that one notebook may take (default 180)")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.output, ignore_errors=True)
    arguments.output.mkdir(parents=True)
    slow = []
    with ProcessPoolExecutor(2) as pool:
        running = {
            source.name: pool.submit(write, source, arguments.output) for source in sorted(SOURCES.glob("*.ipynb"))
        }
        for name, future in running.items():
            seconds = future.result()
            print(f"{name}: {seconds:.0f} s", file=sys.stderr)
            if seconds > arguments.limit:
                slow.append(name)
    if slow:
        print(f"more than {arguments.limit:g} seconds: {', '.join(slow)}", file=sys.stderr)
    return int(bool(slow))


if __name__ == "__main__":
    sys.exit(main())
