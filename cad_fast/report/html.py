"""A report as one HTML file that needs nothing else: pictures inside, no scripts, no addresses of other places."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from PIL import Image

from ..evaluation.comparison import Comparison
from ..files import write_text


@dataclass(frozen=True)
class Heading:
    """A heading of level 2 or 3; the report's title is level 1."""

    text: str
    level: int = 2

    def html(self) -> str:
        if self.level not in (2, 3):
            raise ValueError(f"heading {self.text!r} is of level {self.level}, expected 2 or 3")
        return f"<h{self.level}>{escape(self.text)}</h{self.level}>"


@dataclass(frozen=True)
class Paragraph:
    """Text; an empty line starts a new paragraph."""

    text: str

    def html(self) -> str:
        return "\n".join(f"<p>{escape(part)}</p>" for part in self.text.split("\n\n"))


@dataclass(frozen=True)
class Picture:
    """A PIL image or the bytes of a PNG, what it shows in words for those who do not see it, and a caption."""

    image: Image.Image | bytes
    alt: str
    caption: str | None = None

    def html(self) -> str:
        """Raises ValueError when there is no alternative text or the bytes are no PNG."""
        if not self.alt.strip():
            raise ValueError("a picture of a report needs an alternative text")
        data = self.image
        if isinstance(data, Image.Image):
            buffer = io.BytesIO()
            data.save(buffer, format="PNG", optimize=True)
            data = buffer.getvalue()
        if not data.startswith(b"\x89PNG\r\n\x1a\n"):
            raise ValueError(f"the picture {self.alt!r} is not a PNG")
        with Image.open(io.BytesIO(data)) as opened:
            width, height = opened.size
        source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        image = f'<img src="{source}" alt="{escape(self.alt)}" width="{width}" height="{height}">'
        caption = f"<figcaption>{escape(self.caption)}</figcaption>" if self.caption else ""
        return f"<figure>{image}{caption}</figure>"


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns; the first cell of a row names it. Cells are shown as ``str`` gives them."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]

    def html(self) -> str:
        """Raises ValueError when a row has more or fewer cells than there are columns."""
        for i, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"row {i} of {self.caption!r} has {len(row)} cells for {len(self.columns)} columns")
        first, *others = self.columns
        corner = f'<th scope="col">{escape(first)}</th>' if first else "<td></td>"
        head = corner + "".join(f'<th scope="col">{escape(column)}</th>' for column in others)
        body = "\n".join(
            f'<tr><th scope="row">{escape(str(row[0]))}</th>'
            + "".join(f"<td>{escape(str(cell))}</td>" for cell in row[1:])
            + "</tr>"
            for row in self.rows
        )
        # Wide tables scroll by themselves; tabindex lets the keyboard do it.
        return (
            f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(self.caption)}"><table>'
            f"<caption><span>{escape(self.caption)}</span></caption>\n<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
        )


@dataclass(frozen=True)
class Figure:
    """One number to be seen first: its value as text, what it is, and a remark."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class Figures:
    """A row of numbers to be seen first."""

    items: Sequence[Figure]

    def html(self) -> str:
        def tile(item: Figure) -> str:
            note = f'<dd class="note">{escape(item.note)}</dd>' if item.note else ""
            return f'<div><dt>{escape(item.label)}</dt><dd class="value">{escape(item.value)}</dd>{note}</div>'

        return f'<dl class="figures">{"".join(map(tile, self.items))}</dl>'


Section = Heading | Paragraph | Picture | Table | Figures
_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { --text: #1f2328; --muted: #59636e; --line: #d8dde3; --page: #ffffff; --tile: #f5f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e8eb; --muted: #a0a9b4; --line: #3a424c; --page: #14181d; --tile: #1e242b; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem; color: var(--text); background: var(--page);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.25; margin: 0 0 1.5rem; }
h2 { font-size: 1.35rem; margin: 2.75rem 0 .75rem; padding-top: 1.25rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { max-width: 42rem; margin: .75rem 0; overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; }
/* Plots and sheets are drawn on white and stay so in the dark. */
img { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 8px; }
figcaption, caption { color: var(--muted); font-size: .92rem; text-align: left; padding: .5rem 0; }
.scroll { overflow-x: auto; margin: 1.5rem 0; }
caption span { display: block; position: sticky; left: 0; max-width: calc(100vw - 3.75rem); width: fit-content; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .9rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { color: var(--muted); font-weight: 600; }
tbody th { font-weight: 500; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .9rem; margin: 1.5rem 0; }
.figures div { background: var(--tile); border-radius: 10px; padding: .9rem 1.1rem; }
.figures dt { color: var(--muted); font-size: .92rem; }
.figures dd { margin: 0; overflow-wrap: anywhere; }
.figures .value { font-size: 1.75rem; font-weight: 650; line-height: 1.3; }
.figures .note { color: var(--muted); font-size: .85rem; }
</style>
</head>
<body>
<main>
<h1>$title</h1>
$body
</main>
</body>
</html>
""")


def comparison_table(comparison: Comparison, caption: str | None = None) -> Table:
    """The rows of a comparison as a table of a report."""
    default = "Recognised before and after, on the same seeds; in brackets 95% intervals, changes in percentage points"
    return Table(caption or default, comparison.columns, comparison.cells())


def write_report(path: str | Path, title: str, sections: Sequence[Section]) -> Path:
    """Write the sections, in their order, as one HTML file; all texts are escaped, and it appears only when whole.

    Raises ValueError for a picture without alternative text, and for rows that do not fit their table.
    """
    body = "\n".join(section.html() for section in sections)
    return write_text(path, _PAGE.substitute(title=escape(title), body=body))
