"""Text from elsewhere, made fit for a terminal or a log: nothing in it is obeyed, and it forges no line."""

from __future__ import annotations

import logging
from typing import Any

LONGEST = 4000  # of the names in a file, far beyond any


def printable(text: str, *, lines: bool = True) -> str:
    """``text`` with every control character, and what turns the direction of writing, written out as an escape.

    Args:
        text: from anywhere.
        lines: whether line breaks and tabs stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or (lines and char in "\n\t") else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    # Spaces of other widths are no harm; line separators among them are.
    if char.isspace() and char not in "\n\r\t\v\f\x1c\x1d\x1e\x1f\x85\u2028\u2029":
        return " "
    return char.encode("unicode_escape").decode("ascii")


def require_printable(value: Any, name: str) -> None:
    """Raise ValueError if a text in ``value``, from JSON, could end a line or be obeyed by a terminal.

    Args:
        value: a text, or lists and objects with texts, keys included.
        name: what it is, for the message.
    """
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            waiting += [*each, *each.values()]
        elif isinstance(each, list):
            waiting += each
        elif isinstance(each, str) and (len(each) > LONGEST or not each.isprintable()):
            raise ValueError(
                f"{name} has the text {each!r:.60}, expected printable ones of at most {LONGEST} characters"
            )


class LogFormatter(logging.Formatter):
    """Writes each record as one line. What belongs to it, such as a traceback, follows behind bars."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Format the first line of a record."""
        record.message = printable(record.message, lines=False)
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        first, *others = printable(super().format(record)).split("\n")
        return "\n".join([first, *(f"  | {line}" for line in others)])
