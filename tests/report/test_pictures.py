"""Sheets, plots and reports: what is where on them, and that nothing from outside gets in unescaped."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image, ImageColor, ImageFont

from cad_fast import extras
from cad_fast.evaluation import compare, evaluate
from cad_fast.report import (
    Figure,
    Figures,
    Heading,
    Paragraph,
    Picture,
    Table,
    bars_before_after,
    before_after_sheet,
    comparison_table,
    contact_sheet,
    module_share_plot,
    tradeoff_plot,
    write_report,
)
from cad_fast.report.plots import block_and_kind
from cad_fast.report.sheets import MARK_BACKGROUND, wrap
from cad_fast.zoo.prompt_set import emoji_prompts
from tests.evaluation.fakes import FakeEdit, FakePipeline, FakeScorer

SETTINGS = {"concepts": ["dog", "cat", "book"], "per_concept": 4, "progress": False}
RED, GREEN, BLUE = ((220, 20, 20), (20, 180, 60), (20, 60, 220))


@pytest.fixture(scope="module")
def pair():
    pipeline = FakePipeline(error_rate=0)
    before = evaluate(pipeline, emoji_prompts(), FakeScorer(), keep_images=True, **SETTINGS)
    after = evaluate(pipeline, emoji_prompts(), FakeScorer(), keep_images=True, edit=FakeEdit("cat"), **SETTINGS)
    return before, after


def plain(colour, size=(8, 8)):
    return Image.new("RGB", size, colour)


def boxes(sheet, colour):
    """(left, top, right, bottom) around all pixels of exactly this colour; None when there are none."""
    rows, columns = np.nonzero((np.asarray(sheet) == colour).all(axis=-1))
    return (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else None


def test_a_contact_sheet_has_every_picture_in_its_place():
    sheet = contact_sheet([[plain(RED), plain(GREEN)], [plain(BLUE)]], ["one", "two"], ["a", "b"], scale=5)
    red, green, blue = (boxes(sheet, colour) for colour in (RED, GREEN, BLUE))
    for left, top, right, bottom in (red, green, blue):
        assert (right - left, bottom - top) == (40, 40)
    assert red[1] == green[1] and red[0] == blue[0] and green[0] > red[2] and blue[1] > red[3]
    assert sheet.getpixel((0, 0)) == (255, 255, 255)
    left_of_pictures = np.asarray(sheet)[:, : red[0] - 2]
    assert left_of_pictures.min() < 100  # the row labels are dark


@pytest.mark.parametrize("size, scale, shown", [((32, 32), None, 96), ((512, 256), None, 192), ((32, 32), 2, 64)])
def test_pictures_are_scaled_to_a_readable_size(size, scale, shown):
    left, _, right, _ = boxes(contact_sheet([[plain(RED, size)]], [""], [], scale=scale), RED)
    assert right - left == shown


def test_small_pictures_keep_hard_pixels():
    checker = Image.fromarray(np.indices((8, 8)).sum(0).astype(np.uint8) % 2 * 255).convert("RGB")
    left, top = 20, 20
    cut = np.asarray(contact_sheet([[checker]], [""], [], scale=4))[top : top + 32, left : left + 32]
    np.testing.assert_array_equal(cut, np.asarray(checker).repeat(4, 0).repeat(4, 1))


def test_transparent_pictures_lie_on_white():
    sheet = contact_sheet([[Image.new("RGBA", (8, 8), (255, 0, 0, 0))]], [""], [])
    assert sheet.getpixel((sheet.width // 2, sheet.height // 2)) == (255, 255, 255)


def test_labels_are_wrapped():
    font = ImageFont.load_default(size=15)
    text = "a long label, and a-word-that-does-not-fit-into-a-line-at-all"
    lines = wrap(text, 100, font)
    assert len(lines) > 3 and all(font.getlength(line) <= 100 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    short = contact_sheet([[plain(RED)]], ["x"], ["x"])
    tall = contact_sheet([[plain(RED)]], [text * 3], [text])
    assert tall.height > short.height


def test_sheets_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="no pictures"):
        contact_sheet([], [], [])
    with pytest.raises(ValueError, match="1 rows and 2 row labels"):
        contact_sheet([[plain(RED)]], ["a", "b"], ["a"])
    with pytest.raises(ValueError, match="1 columns and 2 column labels"):
        contact_sheet([[plain(RED)]], ["a"], ["a", "b"])


def test_before_and_after_marks_the_target_row(pair):
    tint = ImageColor.getrgb(MARK_BACKGROUND)
    tinted = boxes(before_after_sheet(*pair, target="cat", columns=3), tint)
    sheet = before_after_sheet(*pair, columns=3)
    assert boxes(sheet, tint) is None
    middle = (tinted[1] + tinted[3]) / 2
    assert sheet.height / 3 < middle < sheet.height * 2 / 3  # cat is the second of three rows
    wider = before_after_sheet(*pair, columns=40)
    assert wider.width > sheet.width  # four pictures per half, as there are no more


def test_before_and_after_needs_pictures_that_belong_together(pair):
    bare = evaluate(FakePipeline(error_rate=0), emoji_prompts(), FakeScorer(), **SETTINGS)
    with pytest.raises(ValueError, match="keep_images=True"):
        before_after_sheet(bare, pair[1])
    with pytest.raises(ValueError, match="unknown object 'dgo'; did you mean 'dog'"):
        before_after_sheet(*pair, concepts=["dgo"])
    with pytest.raises(ValueError, match="columns is 0"):
        before_after_sheet(*pair, columns=0)
    other = evaluate(FakePipeline(), emoji_prompts(), FakeScorer(), per_concept=1, keep_images=True, progress=False)
    with pytest.raises(ValueError, match="cannot be compared"):
        before_after_sheet(pair[0], other)


def opened(png):
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


def has(pixels, colour):
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return bool((np.abs(pixels.astype(int) - wanted).sum(axis=-1) < 6).any())


def test_plots_are_pngs_and_leave_pyplot_alone(pair, monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)  # another library may have imported it
    comparison = compare(*pair, "cat")
    points = [comparison.point(ratio) for ratio in (0.001, 0.01, 0.1)]
    curves = tradeoff_plot({"gradient": points, "regression": points[:2]}, before=90.0, title="cat")
    bars = bars_before_after(comparison, title="cat")
    shares = module_share_plot({"up_blocks.0.resnets.0.conv1": 3, "mid_block.attentions.0.attn2.to_q": 1}, title="cat")
    assert all(has(opened(curves), colour) for colour in ("#0072B2", "#D55E00"))
    assert all(has(opened(bars), colour) for colour in ("#0072B2", "#9fb8cc"))
    assert all(has(opened(shares), colour) for colour in ("#009E73", "#D55E00")) and not has(opened(shares), "#E69F00")
    assert tradeoff_plot({"gradient": points}) == tradeoff_plot({"gradient": points})
    assert tradeoff_plot({"a": [{"ratio": 0.1, "target": 3.0}]})  # neither others, nor style, nor intervals
    assert "matplotlib.pyplot" not in sys.modules


@pytest.mark.parametrize("curves", [{}, {"gradient": []}])
def test_plots_of_nothing_are_refused(curves):
    with pytest.raises(ValueError, match="no points"):
        tradeoff_plot(curves)


@pytest.mark.parametrize("shares", [{}, {"a": 0}, {"a": -1, "b": 2}])
def test_shares_of_nothing_are_refused(shares):
    with pytest.raises(ValueError, match="must not be negative"):
        module_share_plot(shares)


@pytest.mark.parametrize(
    "module, expected",
    [
        ("down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj", ("down_blocks.1", "feed-forward")),
        ("up_blocks.2.attentions.1.transformer_blocks.0.attn1.to_q", ("up_blocks.2", "self-attention")),
        ("mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0", ("mid_block", "cross-attention")),
        ("down_blocks.0.resnets.0.conv_shortcut", ("down_blocks.0", "convolution")),
        ("transformer_blocks.11.ff_context.net.2", ("transformer_blocks.11", "feed-forward")),
        ("single_transformer_blocks.3.attn.to_k", ("single_transformer_blocks.3", "attention")),
        ("conv_in", ("conv_in", "convolution")),
        ("time_embedding.linear_1", ("time_embedding", "other")),
    ],
)
def test_modules_are_sorted_by_their_names(module, expected):
    assert block_and_kind(module) == expected


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"needs matplotlib: pip install 'cad-fast\[report\]'"):
        tradeoff_plot({"a": [{"ratio": 0.1, "target": 3.0}]})
    with pytest.raises(ImportError, match=r"needs no_such_package: pip install 'cad-fast\[serve\]'"):
        extras.require("no_such_package.part", "serve")
    with pytest.raises(ModuleNotFoundError, match=r"json\.no_such_part"):
        extras.require("json.no_such_part", "report")


def test_evaluation_is_imported_without_matplotlib():
    code = "import sys, cad_fast.evaluation; assert 'matplotlib' not in sys.modules and 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


NASTY = '<script>alert("1")</script> & $body \'"'


def test_a_report_holds_everything_escaped_and_itself_only(tmp_path, pair):
    sections = [
        Heading(NASTY),
        Paragraph(f"{NASTY}\n\nsecond"),
        Figures([Figure(NASTY, NASTY, NASTY), Figure("3%", "label")]),
        Picture(plain(RED), NASTY, NASTY),
        Picture(bars_before_after(compare(*pair, "cat")), "bars"),
        Table(NASTY, ["", NASTY], [[NASTY, 3.5]]),
        comparison_table(compare(*pair, "cat")),
    ]
    path = write_report(tmp_path / "new" / "report.html", NASTY, sections)
    html = path.read_text(encoding="utf-8")
    page = Elements(html)
    assert not page.all("script") and not page.all("link") and "http" not in html.replace("http-equiv", "")
    images = page.all("img")
    assert [image["alt"] for image in images] == [NASTY, "bars"]
    assert all(image["src"].startswith("data:image/png;base64,") for image in images)
    assert images[0]["width"] == "8"
    assert page.text.count(NASTY) >= 10 and "second" in page.text
    assert len(page.all("caption")) == 2 and len(page.all("p")) == 2
    assert "prefers-color-scheme: dark" in html and page.all("html") == [{"lang": "en"}]
    assert re.search(r"default-src 'none'; img-src data:", html)


@pytest.mark.parametrize(
    "section, reason",
    [
        (Picture(plain(RED), " "), "alternative text"),
        (Picture(b"GIF89a", "x"), "'x' is not a PNG"),
        (Table("t", ["a", "b"], [[1, 2], [3]]), "row 1 of 't' has 1 cells for 2 columns"),
        (Heading("h", 5), "level 5"),
    ],
)
def test_broken_sections_are_refused_and_nothing_is_written(tmp_path, section, reason):
    with pytest.raises(ValueError, match=reason):
        write_report(tmp_path / "report.html", "t", [section])
    assert not list(tmp_path.iterdir())
