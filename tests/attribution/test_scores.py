"""Scores: saved and read, damaged files, parts of them, and what does not fit."""

from __future__ import annotations

import pytest
import torch

from cad_fast.attribution import Attributor, Scores
from cad_fast.components.space import ComponentSpace


def test_round_trip_and_damage(pipeline, recording, tmp_path):
    scores = Attributor(pipeline, kind="head").run(recording, concept="cat", progress=False)
    path = scores.save(tmp_path / "cat.safetensors")
    again = Scores.load(path)
    assert torch.equal(again.values, scores.values) and again.space == scores.space
    assert again.provenance == scores.provenance and again.concept == "cat"
    data = path.read_bytes()
    for cut in (0, 7, 100, len(data) - 1):
        (tmp_path / "cut.safetensors").write_bytes(data[:cut])
        with pytest.raises(ValueError, match=r"cut\.safetensors is truncated or not"):
            Scores.load(tmp_path / "cut.safetensors")
    with pytest.raises(FileNotFoundError, match="absent"):
        Scores.load(tmp_path / "absent")
    assert not list(tmp_path.glob("*.part"))


def test_top_and_modules(pipeline, recording):
    scores = Attributor(pipeline, target_modules="attention").run(recording, progress=False)
    name, value = scores.top(1)[0]
    assert value == scores.values.max() and name.endswith("]")
    assert scores.top(1, negative=True)[0][1] == scores.values.min()
    part = scores.of_modules("cross-attention-kv")
    own = Attributor(pipeline, target_modules="cross-attention-kv").run(recording, progress=False)
    assert part.space == own.space and torch.allclose(part.values, own.values, rtol=1e-3, atol=1e-7)
    with pytest.raises(ValueError, match="none of the"):
        scores.of_modules("convolution9")


def test_scores_must_fit_their_space(pipeline):
    space = ComponentSpace.of(pipeline, "head")
    with pytest.raises(ValueError, match="one per component"):
        Scores(torch.zeros(3), space)
    values = torch.zeros(space.n)
    values[2] = float("nan")
    with pytest.raises(ValueError, match="is nan"):
        Scores(values, space)
