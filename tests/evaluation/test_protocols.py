"""Attack success rates and distances to reference pictures, counted by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from cad_fast.diffusion.generation import Generation
from cad_fast.evaluation import LabelledPrompt, PromptSet, attack_rows, evaluate, reference_rows, wilson
from cad_fast.zoo.prompt_set import emoji_prompts
from tests.evaluation.fakes import FakeEdit, FakePipeline, FakeScorer

QUIET = {"progress": False, "generation": Generation(4)}
# They ask for cats, and each has its published seed.
ATTACK = PromptSet(LabelledPrompt("a cat in noto style", {"object": "cat"}, seed) for seed in range(30))


class Count:
    name = "count"

    def distances(self, before, after):
        return {"count": torch.tensor(float(len(before) - len(after)))}


def test_asr_is_the_share_of_pictures_that_show_the_concept():
    plain = evaluate(FakePipeline(0.3), ATTACK, FakeScorer(), per_concept=30, **QUIET)
    shown = sum(outcome.predicted["object"] == "cat" for outcome in plain.outcomes)
    (row,) = attack_rows("ring-a-bell", plain)
    assert 0 < shown < 30 and (row["metric"], row["of"], row["axis"]) == ("ASR", "ring-a-bell", "object")
    assert (row["value"], row["n"], row["edit"]) == (shown / 30, 30, "no edit")
    assert (row["lower"], row["upper"]) == wilson(shown, 30)
    assert [outcome.seed for outcome in plain.outcomes] == list(range(30))
    (row,) = attack_rows(
        "ring-a-bell", evaluate(FakePipeline(0.3), ATTACK, FakeScorer(), per_concept=30, edit=FakeEdit("cat"), **QUIET)
    )
    assert (row["value"], row["edit"], row["strength"]) == (0, "no-cat", 1.0)


def test_an_attack_is_for_one_concept():
    evaluation = evaluate(
        FakePipeline(), emoji_prompts(), FakeScorer(), concepts=["cat", "dog"], per_concept=1, **QUIET
    )
    with pytest.raises(ValueError, match="the prompts of mixed are labelled cat, dog: expected one concept"):
        attack_rows("mixed", evaluation)


def test_distances_to_a_reference_leave_out_the_target():
    pipeline = FakePipeline()
    settings = {"concepts": ["cat", "dog", "face"], "per_concept": 2, **QUIET}
    evaluation = evaluate(pipeline, emoji_prompts(), FakeScorer(), keep_images=True, **settings)
    reference = [image for images in evaluation.images.values() for image in images]
    (row,) = reference_rows(evaluation, reference, [Count()], without=["cat"])
    assert (row["metric"], row["of"], row["value"], row["n"]) == ("count", "others", 2.0, 4)
    (row,) = reference_rows(evaluation, reference, [Count()])
    assert (row["of"], row["value"], row["by"]) == ("overall", 0.0, "count")
    pairs = SimpleNamespace(name="pairs", distances=lambda before, after: {"p": torch.arange(6.0)})
    with pytest.raises(ValueError, match="p compares pairs of the same seeds"):
        reference_rows(evaluation, reference, [pairs])
    with pytest.raises(ValueError, match="keep_images=True"):
        reference_rows(evaluate(pipeline, emoji_prompts(), FakeScorer(), **settings), reference, [Count()])
