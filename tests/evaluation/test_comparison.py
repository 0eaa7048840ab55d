"""Comparisons: exact counts from a run with a known effect, refusals, and the table."""

from __future__ import annotations

import dataclasses
import json

import pytest

from cad_fast.diffusion.generation import Generation
from cad_fast.evaluation import Evaluation, PairedCounts, compare, evaluate, paired_difference, paired_ratio, wilson
from cad_fast.zoo.concepts import OBJECTS
from cad_fast.zoo.prompt_set import emoji_prompts
from tests.evaluation.fakes import FakeEdit, FakePipeline, FakeScorer


def run(pipeline: FakePipeline, **kwargs) -> Evaluation:
    settings = {"per_concept": 8, "generation": Generation(4), "progress": False, **kwargs}
    return evaluate(pipeline, emoji_prompts(), FakeScorer(), **settings)


@pytest.fixture(scope="module")
def pair() -> tuple[Evaluation, Evaluation]:
    """Before, and after an edit that erases the cat and, through more mistakes, harms the others a little."""
    pipeline = FakePipeline(error_rate=0.1)
    before = run(pipeline)
    pipeline.error_rate = 0.2
    return before, run(pipeline, edit=FakeEdit("cat"), strength=0.7)


def test_counts_agree_with_the_outcomes(pair):
    before, after = pair
    comparison = compare(before, after, "cat")
    assert (comparison.edit, comparison.strength, comparison.targets) == ("no-cat", 0.7, ("cat",))
    assert comparison.target.pairs == PairedCounts(0, before.tally("cat").hits, 0, 8 - before.tally("cat").hits)
    assert comparison.became == {"dog": 8}
    others = [name for name in OBJECTS if name != "cat"]
    hits = [(before.tally(name).hits, after.tally(name).hits) for name in others]
    assert comparison.others.pairs.before == sum(b for b, _ in hits)
    assert comparison.others.pairs.after == sum(a for _, a in hits)
    assert comparison.others.pairs.only_after == 0  # a higher error rate only adds mistakes, on the same seeds
    mean_before, mean_after = sum(b for b, _ in hits) / 88, sum(a for _, a in hits) / 88
    assert comparison.others.kept == pytest.approx(100 * mean_after / mean_before)
    drops = {name: b - a for name, (b, a) in zip(others, hits, strict=True)}
    assert drops[comparison.worst] == max(drops.values()) > 0
    assert comparison.axes["style"].pairs == PairedCounts(88, 0, 0, 0)


def test_intervals_are_those_of_the_paired_counts(pair):
    change = compare(*pair, "cat").others
    pairs = change.pairs
    assert change.before_interval == wilson(pairs.before, 88) and change.after_interval == wilson(pairs.after, 88)
    assert change.difference_interval == paired_difference(pairs)
    assert change.kept_interval == pytest.approx([100 * limit for limit in paired_ratio(pairs)])


def test_without_a_change_everything_is_kept():
    pipeline = FakePipeline()
    comparison = compare(run(pipeline), run(pipeline), ["cat", "dog", "cat"])
    assert comparison.targets == ("cat", "dog") and comparison.target.pairs.n == 16
    assert comparison.others.kept == 100 and comparison.others.difference == 0
    low, high = comparison.others.kept_interval
    assert 95 < low < 100 < high < 105


def test_with_targets_alone_there_are_no_others():
    pipeline = FakePipeline()
    before = run(pipeline, concepts=["cat"])
    comparison = compare(before, run(pipeline, concepts=["cat"], edit=FakeEdit("cat")), "cat")
    assert comparison.others is None and comparison.worst is None
    assert comparison.axes["style"].pairs.n == 8
    assert comparison.to_dict()["others"] is None
    assert set(comparison.point(0.1)["intervals"]) == {"target", "style"}
    assert [line.split()[0] for line in comparison.table().splitlines()] == ["before", "cat", "style", "cat"]


def test_nothing_recognised_before_leaves_kept_open():
    pipeline = FakePipeline(error_rate=1.1)
    comparison = compare(run(pipeline), run(pipeline, edit=FakeEdit("cat")), "cat")
    assert comparison.others.kept is None and comparison.others.kept_interval is None
    assert json.loads(json.dumps(comparison.to_dict(), allow_nan=False))["others"]["kept_percent"] is None
    assert "others" not in comparison.point(0.1)


def test_the_order_of_concepts_does_not_matter():
    pipeline = FakePipeline()
    before = run(pipeline, concepts=["cat", "dog"])
    after = run(pipeline, concepts=["dog", "cat"], edit=FakeEdit("cat"))
    assert compare(before, after, "cat").concepts["dog"].difference == 0


@pytest.mark.parametrize(
    "kwargs, reason",
    [
        ({"seed": 1}, "seed is 0 and 1"),
        ({"generation": Generation(5)}, "num_inference_steps is 4 and 5"),
        ({"generation": Generation(4, 2.0)}, "guidance_scale is None and 2.0"),
        ({"per_concept": 3}, "per_concept is 8 and 3"),
        ({"axis": "style"}, "axis is 'object' and 'style'"),
        ({"concepts": ["cat", "dog"]}, "the concepts are cat, dog, face"),
        ({"generation": Generation(4, None, {"eta": 1.0})}, r"pipeline_kwargs\['eta'\] is None and 1.0"),
    ],
)
def test_other_settings_are_refused_by_name(pair, kwargs, reason):
    with pytest.raises(ValueError, match=f"cannot be compared: .*{reason}"):
        compare(pair[0], run(FakePipeline(), **kwargs), "cat")


def test_other_models_scorers_and_prompts_are_refused(pair):
    pipeline = FakePipeline()
    pipeline.unet.weight.data.add_(1)
    with pytest.raises(ValueError, match="the models differ: their weights differ by"):
        compare(pair[0], run(pipeline), "cat")
    settings = dataclasses.replace(pair[1].settings, scorer="CLIP large")
    with pytest.raises(ValueError, match="scorer is 'FakeScorer' and 'CLIP large'"):
        compare(pair[0], dataclasses.replace(pair[1], settings=settings), "cat")
    outcome = dataclasses.replace(pair[1].outcomes[0], prompt="another prompt")
    with pytest.raises(ValueError, match="picture 0 of 'cat' had other prompts"):
        compare(pair[0], dataclasses.replace(pair[1], outcomes=(outcome, *pair[1].outcomes[1:])), "cat")


def test_unknown_targets_are_refused(pair):
    with pytest.raises(ValueError, match="unknown object 'cta'; did you mean 'cat'"):
        compare(*pair, "cta")
    with pytest.raises(ValueError, match="no target"):
        compare(*pair, [])


def test_the_table_is_aligned_and_short(pair):
    comparison = compare(*pair, "cat")
    lines = comparison.table().splitlines()
    assert len(lines) == 6 and len({len(line) for line in lines[:5]}) == 1
    assert max(map(len, lines)) < 100
    assert lines[1].startswith("cat ") and "0% [0, 32]" in lines[1]
    assert lines[2].startswith("11 others") and lines[-1] == "cat became: dog 8"


def test_a_point_holds_percentages(pair):
    comparison = compare(*pair, "cat")
    point = comparison.point(0.01)
    assert (point["ratio"], point["target"], point["style"]) == (0.01, 0.0, 100.0)
    assert point["others"] == comparison.others.kept
    assert point["intervals"]["target"] == pytest.approx((0, 100 * wilson(0, 8).upper))
