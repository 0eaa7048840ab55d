"""Text from elsewhere reaches no terminal and no log as it is."""

import io
import logging

import pytest

from cad_fast.texts import LogFormatter, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain Künstler 猫", "plain Künstler 猫"),
        ("a\x1b[31mb\x07", "a\\x1b[31mb\\x07"),
        ("a\u202eb\ud800", "a\\u202eb\\ud800"),
        ("a\r\nb\x9b", "a\\r\nb\\x9b"),
        ("a\u2028b\xa0c", "a\\u2028b c"),
    ],
)
def test_printable(text, shown) -> None:
    assert printable(text) == shown
    assert "\n" not in printable(text, lines=False)
    printable(text).encode()


def test_a_log_record_is_one_line_and_what_follows_stands_behind_bars() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LogFormatter("%(levelname)s: %(message)s"))
    log = logging.Logger("of this test")
    log.addHandler(handler)
    log.warning("the edit %s cannot be read", "x\nERROR: forged\x1b[2J")
    try:
        raise ValueError("one\nERROR: forged")
    except ValueError:
        log.exception("failed")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "WARNING: the edit x\\nERROR: forged\\x1b[2J cannot be read"
    assert lines[1] == "ERROR: failed" and all(line.startswith("  | ") for line in lines[2:])
