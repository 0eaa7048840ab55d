"""Text from elsewhere reaches no terminal and no log as it is."""

import io
import logging

import pytest
import torch

from cad_fast import ComponentSpace, Scores
from cad_fast.components.fingerprint import Fingerprint
from cad_fast.diffusion.generation import Generation
from cad_fast.recording.call import DenoiserCall
from cad_fast.recording.data import Recording
from cad_fast.texts import LogFormatter, printable, require_printable


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


@pytest.mark.parametrize("value", ["a\x1b[2J", ["a", {"b": "c\nd"}], {"a\u202e": 1}, "x" * 4001])
def test_names_that_a_terminal_would_obey_are_refused(value) -> None:
    with pytest.raises(ValueError, match=r"its space has the text .*expected printable ones") as caught:
        require_printable(value, "its space")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


def test_names_that_are_fine() -> None:
    require_printable({"module": "down.0.to_k", "shape": [1, 2.5, None, True], "Künstler": ["猫"]}, "its space")


def test_scores_and_recordings_with_such_names(tmp_path) -> None:
    space = ComponentSpace.of(torch.nn.Sequential(torch.nn.Linear(4, 4)), "weight", "all")
    scores = Scores(torch.ones(space.n), space, {"concept": "cat\x1b[2J\ndog"})
    assert scores.concept == "cat\\x1b[2J\\ndog"
    evil = Fingerprint("Net\nerror: x", "abc", (0.5,))
    Scores(torch.ones(space.n), ComponentSpace(space.entries, evil), {}).save(tmp_path / "scores")
    with pytest.raises(ValueError, match="its space has the text"):
        Scores.load(tmp_path / "scores")
    call = DenoiserCall(0, 1.0, {"sample": torch.randn(1, 4)}, "sample", None)
    generation = Generation(num_inference_steps=1)
    Recording([call], ["a"], [1], generation, {}, None, evil).save(tmp_path / "recording")
    with pytest.raises(ValueError, match="'fingerprint' has the text"):
        Recording.load(tmp_path / "recording")
