"""Sheets of pictures with labels: any grid, and before against after on the same seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from ..evaluation.comparison import require_comparable
from ..evaluation.outcomes import Evaluation
from ..evaluation.prompts import unknown
from ..evaluation.scorers import on_white

CELL = 96  # pixels on the sheet of a picture whose scale is not given
GAP, GROUP_GAP, MARGIN = 6, 28, 20
LABEL_WIDTH = 150
TEXT, MUTED = "#1f2328", "#59636e"
MARK, MARK_BACKGROUND = "#b3261e", "#fbe9e7"
EMPTY = "#f3f4f6"


@dataclass(frozen=True)
class _Header:
    """A text above the columns ``first`` to ``last``, both included."""

    text: str
    first: int
    last: int


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def wrap(text: str, width: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """``text`` in lines of at most ``width`` pixels, broken between words, and within a word that is too long."""
    lines = [""]
    for word in text.split():
        candidate = f"{lines[-1]} {word}".strip()
        if font.getlength(candidate) <= width:
            lines[-1] = candidate
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _scaled(image: Image.Image, scale: float | None) -> Image.Image:
    """Enlarged with hard pixels by a whole factor where possible, shrunk smoothly."""
    image = on_white(image)
    longest = max(image.size)
    if scale is None:
        scale = max(1, round(CELL / longest)) if longest <= CELL else 2 * CELL / max(longest, 2 * CELL)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)


class _Sheet:
    """The layout of one sheet: where each column and row goes, and how wide the labels are."""

    def __init__(
        self,
        rows: Sequence[Sequence[Image.Image]],
        row_labels: Sequence[str],
        headers: Sequence[_Header],
        gaps_before: Sequence[int],
        scale: float | None,
        title: str | None,
    ) -> None:
        if not rows or not any(rows):
            raise ValueError("there are no pictures for the sheet")
        if len(row_labels) != len(rows):
            raise ValueError(f"there are {len(rows)} rows and {len(row_labels)} row labels")
        self.rows = [[_scaled(image, scale) for image in row] for row in rows]
        self.cell_width = max(image.width for row in self.rows for image in row)
        self.cell_height = max(image.height for row in self.rows for image in row)
        self.font, self.title_font = _font(15), _font(20)
        self.labels = [wrap(label, LABEL_WIDTH, self.font) for label in row_labels]
        widest = max(self.font.getlength(line) for lines in self.labels for line in lines)
        left = MARGIN + (round(widest) + 14 if widest else 0)
        self.columns = []
        for column in range(max(map(len, rows))):
            left += GROUP_GAP - GAP if column in gaps_before else 0
            self.columns.append(left)
            left += self.cell_width + GAP
        self.width = left - GAP + MARGIN
        self.headers = [(header, wrap(header.text, self._span(header), self.font)) for header in headers]
        title_lines = wrap(title, self.width - 2 * MARGIN, self.title_font) if title else []
        self.title_lines = title_lines
        header_lines = max((len(lines) for header, lines in self.headers if header.text), default=0)
        self.header_bottom = MARGIN + 26 * len(title_lines) + (10 if title_lines else 0) + 20 * header_lines
        self.top = self.header_bottom + (6 if header_lines else 0)
        heights = [max(self.cell_height, 20 * len(lines)) + GAP for lines in self.labels]
        self.row_tops = [self.top + sum(heights[:row]) for row in range(len(rows))]
        self.row_heights = heights
        self.height = self.top + sum(heights) - GAP + MARGIN

    def _span(self, header: _Header) -> int:
        return self.columns[header.last] + self.cell_width - self.columns[header.first]

    def draw(self, marked: Sequence[int]) -> Image.Image:
        """The sheet; the rows ``marked`` stand on a tinted band with a bar at the left."""
        sheet = Image.new("RGB", (self.width, self.height), "white")
        pen = ImageDraw.Draw(sheet)
        for i, line in enumerate(self.title_lines):
            pen.text((MARGIN, MARGIN + 26 * i), line, fill=TEXT, font=self.title_font)
        for header, lines in self.headers:
            centre = self.columns[header.first] + self._span(header) / 2
            for i, line in enumerate(reversed(lines)):
                pen.text((centre, self.header_bottom - 20 * i), line, fill=MUTED, font=self.font, anchor="md")
        for row, (top, height) in enumerate(zip(self.row_tops, self.row_heights, strict=True)):
            if row in marked:
                band = (MARGIN // 2, top - GAP // 2, self.width - MARGIN // 2, top + height - GAP // 2 - 1)
                pen.rectangle(band, fill=MARK_BACKGROUND)
                pen.rectangle((band[0], band[1], band[0] + 3, band[3]), fill=MARK)
            self._draw_row(sheet, pen, row, MARK if row in marked else TEXT)
        return sheet

    def _draw_row(self, sheet: Image.Image, pen: ImageDraw.ImageDraw, row: int, colour: str) -> None:
        top, inner = self.row_tops[row], self.row_heights[row] - GAP
        lines = self.labels[row]
        for i, line in enumerate(lines):
            y = top + inner / 2 + 20 * (i - (len(lines) - 1) / 2)
            pen.text((self.columns[0] - 14, y), line, fill=colour, font=self.font, anchor="rm")
        top += (inner - self.cell_height) // 2
        for column, left in enumerate(self.columns):
            if column >= len(self.rows[row]):
                pen.rectangle((left, top, left + self.cell_width - 1, top + self.cell_height - 1), fill=EMPTY)
                continue
            image = self.rows[row][column]
            at = (left + (self.cell_width - image.width) // 2, top + (self.cell_height - image.height) // 2)
            sheet.paste(image, at)
            edge = (at[0] - 1, at[1] - 1, at[0] + image.width, at[1] + image.height)
            pen.rectangle(edge, outline="#d8dde3")


def contact_sheet(
    rows: Sequence[Sequence[Image.Image]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    *,
    scale: float | None = None,
    title: str | None = None,
) -> Image.Image:
    """A grid of pictures on white, RGB, with labels; rows may be of different lengths.

    ``scale`` multiplies the pictures' size, with hard pixels from 1 on; by default small ones are enlarged to about 96
    pixels and large ones shrunk to 192. Raises ValueError when there are no pictures or the labels do not fit.
    """
    n_columns = max(map(len, rows), default=0)
    if column_labels and len(column_labels) != n_columns:
        raise ValueError(f"there are {n_columns} columns and {len(column_labels)} column labels")
    headers = [_Header(label, column, column) for column, label in enumerate(column_labels)]
    return _Sheet(rows, row_labels, headers, (), scale, title).draw(())


def before_after_sheet(
    before: Evaluation,
    after: Evaluation,
    *,
    target: str | Sequence[str] = (),
    concepts: Sequence[str] | None = None,
    columns: int = 6,
    scale: float | None = None,
    title: str | None = None,
) -> Image.Image:
    """One row per concept: its first ``columns`` pictures before, and the same seeds after; ``target`` rows are marked.

    Raises ValueError when the two evaluations do not belong together, kept no pictures, or lack a concept.
    """
    require_comparable(before, after)
    if before.images is None or after.images is None:
        raise ValueError("the evaluations kept no pictures; evaluate with keep_images=True")
    targets = (target,) if isinstance(target, str) else tuple(target)
    names = tuple(concepts) if concepts is not None else before.concepts
    for name in (*names, *targets):
        if name not in before.images:
            raise ValueError(unknown(before.axis, name, before.images))
    half = min(columns, before.settings.per_concept)
    if half < 1:
        raise ValueError(f"columns is {columns}, expected at least 1")
    rows = [[*before.images[name][:half], *after.images[name][:half]] for name in names]
    edit = f"after: {after.settings.edit}" if after.settings.edit else "after"
    headers = [_Header("before", 0, half - 1), _Header(edit, half, 2 * half - 1)]
    labels = [f"{name} (target)" if name in targets else name for name in names]
    sheet = _Sheet(rows, labels, headers, (half,), scale, title)
    return sheet.draw([row for row, name in enumerate(names) if name in targets])
