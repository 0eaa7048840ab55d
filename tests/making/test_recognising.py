"""What a model sees in pictures: of its own objects, of latents that cannot be noised, and when an edit is made."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import cad_fast
from cad_fast import zoo
from cad_fast.diffusion.denoisers import denoiser_of
from cad_fast.making import calls, making
from cad_fast.making.candidates import LITTLE_MOVED
from cad_fast.making.concepts import bases_of
from cad_fast.making.recognising import recognised
from tests.pipelines import flux

OBJECTS = ("car", "moon", "tree")
PROMPTS = {name: zoo.prompts(name) for name in OBJECTS}


@pytest.fixture(scope="module", params=zoo.MODELS)
def drawn(request):
    """A model, and four pictures of each object."""
    pipeline = zoo.load(request.param)
    texts = [zoo.prompts(name)[number] for name in OBJECTS for number in (0, 1, 2, 0)]
    settings = zoo.generation(request.param).to_kwargs()
    return pipeline, cad_fast.record(pipeline, texts, seeds=40, progress=False, **settings)


def test_a_model_knows_its_own_pictures(drawn) -> None:
    pipeline, recording = drawn
    found = recognised(pipeline, recording, PROMPTS)
    right = [seen == name for seen, name in zip(found, [name for name in OBJECTS for _ in range(4)], strict=True)]
    assert sum(right) >= 11
    # Turned about, the order in which concepts are named decides nothing.
    assert recognised(pipeline, recording, dict(reversed(PROMPTS.items()))) == found


def test_the_least_error_wins(drawn) -> None:
    """Written out: noise, denoise under each prompt, sum the squares."""
    pipeline, recording = drawn
    texts = {name: [own[row % len(own)] for row in range(recording.n_rows)] for name, own in PROMPTS.items()}
    settings = {**recording.generation.to_kwargs(), "num_inference_steps": None}
    sums = {}
    for name, own in texts.items():
        noised = cad_fast.renoise(recording.latents, pipeline, own, timesteps=[300.0, 600.0], seed=3, **settings)
        with torch.no_grad():
            outputs = [call.run(denoiser_of(pipeline)) for call in noised.calls]
        squares = [(output - call.target).double().square() for output, call in zip(outputs, noised.calls, strict=True)]
        sums[name] = sum(square.flatten(1).sum(1) for square in squares)
    expected = [min(sums, key=lambda name: sums[name][row].item()) for row in range(recording.n_rows)]
    assert recognised(pipeline, recording, PROMPTS, seed=3, shares=(0.3, 0.6)) == expected


def test_what_cannot_be_judged_is_refused(drawn) -> None:
    pipeline, recording = drawn
    with pytest.raises(ValueError, match="there is one concept, 'car'"):
        recognised(pipeline, recording, {"car": ["a car"]})
    with pytest.raises(ValueError, match="no final latents"):
        recognised(pipeline, replace(recording, latents=None), PROMPTS)


def test_what_cannot_be_looked_at_is_said_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> list[str]:
        raise ValueError("no target is known for this scheduler")

    monkeypatch.setattr(making, "recognised", refuse)
    monkeypatch.setattr(calls, "RATIOS", (0.01, 0.02))
    with caplog.at_level(logging.WARNING, logger="cad_fast"):
        edit = cad_fast.erase(zoo.load(), "car", keep=["cat"], samples=2, num_inference_steps=6, progress=False)
    assert sum("are not looked at" in record.message for record in caplog.records) == 1
    noted = edit.provenance["making"]
    assert noted["not_looked_at"] == "no target is known for this scheduler"
    assert all(each["seen"] is None for each in noted["candidates"])
    assert "sees" not in edit.prediction() and "sees" not in noted["chosen_because"]


def test_packed_latents_are_looked_at_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "RATIOS", (0.001,))
    settings = {"samples": 2, "progress": False, "num_inference_steps": 3, "height": 32, "width": 32}
    edit = cad_fast.erase(flux(), "a cat", keep=["a dog"], target_modules="attention", **settings)
    assert (
        edit.provenance["predicted"]["seen"] in {n / 4 for n in range(5)}
        and edit.provenance["making"]["not_looked_at"] is None
    )


def test_an_edit_says_in_how_many_pictures_the_concept_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "RATIOS", (0.01, 0.06))
    pipeline = zoo.load()
    settings = {"samples": 3, "keep": ["cat", "tree"], "num_inference_steps": 6, "progress": False}
    edit = cad_fast.erase(pipeline, "car", **settings)
    tried = edit.provenance["making"]["candidates"]
    assert all(each["seen"] is None or each["seen"] in {n / 6 for n in range(7)} for each in tried)
    assert tried[0]["seen"] is not None and tried[0]["window"][1] == pytest.approx(0.85 * tried[0]["window"][0])
    # What moves little need not be looked at.
    moved = [sum(each["moved"].values()) / 2 for each in tried]
    assert all((each["kept"] is None) == (by <= LITTLE_MOVED) for each, by in zip(tried, moved, strict=True))
    assert f"the model sees it in {edit.provenance['predicted']['seen']:.0%} of the pictures" in edit.prediction()
    assert cad_fast.erase(pipeline, "car", **settings) == edit


def test_base_prompts() -> None:
    pipeline, prompts = zoo.load(), {"noto": ["a cat in noto style", "a dog in noto style"]}
    assert bases_of(pipeline, "noto", prompts, "a picture") == {"noto": ["a picture"] * 2}
    assert bases_of(pipeline, "noto", prompts, ["a cat", "a dog"]) == {"noto": ["a cat", "a dog"]}
    # Of prompts of one's own nothing is assumed.
    assert bases_of(pipeline, "noto", prompts, None) == {}
    own = {name: zoo.prompts(name) for name in ("noto", "fluent")}
    assert bases_of(pipeline, "noto", own, None) == {name: [zoo.caption(obj) for obj in zoo.OBJECTS] for name in own}
    assert bases_of(pipeline, "car", {"car": zoo.prompts("car")}, None) == {}
    with pytest.raises(ValueError, match="3 base prompts for the 2 prompts of 'noto'"):
        bases_of(pipeline, "noto", prompts, ["a cat", "a dog", "a car"])


def test_a_style_is_compared_with_the_object_alone() -> None:
    pipeline = zoo.load()
    edit = cad_fast.erase(pipeline, "noto", ratio=0.06, samples=12, num_inference_steps=8, progress=False)
    assert edit.provenance["objective"]["base"] == "base"
    assert edit.provenance["objective"]["timesteps"] == [pytest.approx(0.85 * 876), pytest.approx(0.4 * 876)]
    assert edit.provenance["making"]["base_prompts"]["noto"][0] == "a cat"


def test_one_kept_concept_that_is_lost_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that fares worst, not the mean; what was not seen before says nothing."""
    made = making.Making(zoo.load(), "car", "cross-attention-kv", None, 2, 0, False, cad_fast.Generation())
    made.kept = {"cat": [], "dog": [], "face": []}
    seen = {True: ["cat"] * 3 + ["dog"] * 3 + ["face", "cat", "cat"], False: ["cat", "cat", "dog", "cat"] + ["dog"] * 2}

    def names(texts, prompts, seed, edit) -> list[str]:
        assert texts == [zoo.caption(each, style) for each in made.kept for style in zoo.STYLES]
        return seen[True] if edit is None else seen[False] + ["face", "cat", "cat"]

    monkeypatch.setattr(made, "_names", names)
    monkeypatch.setattr(made, "say", lambda doing: None)
    edit = SimpleNamespace(n_weights=1)
    prompts = {each: zoo.prompts(each) for each in made.kept}
    assert made.kept_in(edit, prompts) == 2 / 3
    seen[False] = ["cat"] * 3 + ["dog", "cat", "cat"]
    assert made.kept_in(edit, prompts) == 1 / 3
    seen[True] = ["moon"] * 9
    made._kept_before = None
    assert made.kept_in(edit, prompts) is None
