"""Comparisons: exact counts from a run with a known effect, refusals, and the table."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch

from cad_fast.diffusion.generation import Generation
from cad_fast.evaluation import Evaluation, PairedCounts, compare, evaluate, paired_difference, paired_ratio, wilson
from cad_fast.evaluation.intervals import harmonic_mean_interval
from cad_fast.evaluation.rows import COLUMNS
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


def rows_of(comparison, **kwargs) -> dict[tuple, dict]:
    rows = comparison.rows(**kwargs)
    assert all(tuple(each) == COLUMNS for each in rows)
    found = {(each["metric"], each["axis"], each["of"], each["edit"]): each for each in rows}
    assert len(found) == len(rows)
    return found


def test_rows_have_the_published_metrics_and_one_without_an_edit(pair):
    comparison = compare(*pair, "cat")
    rows = rows_of(comparison)
    for edit, evaluation in zip(("no edit", "no-cat"), pair, strict=True):
        cats = evaluation.tally("cat").hits
        others = [outcome for outcome in evaluation.outcomes if outcome.concept != "cat"]
        hits = {axis: sum(outcome.hit(axis) for outcome in others) for axis in ("object", "style")}
        ua, ira = rows["UA", "object", "cat", edit], rows["IRA", "object", "others", edit]
        assert (ua["value"], ua["n"]) == ((8 - cats) / 8, 8) and (ua["lower"], ua["upper"]) == wilson(8 - cats, 8)
        assert (ira["value"], ira["n"]) == (hits["object"] / 88, 88)
        assert rows["CRA", "style", "others", edit]["value"] == hits["style"] / 88
        erb = rows["ERB", "object", "cat", edit]
        sums = ua["value"] + ira["value"]
        assert erb["value"] == pytest.approx(2 * ua["value"] * ira["value"] / sums if sums else 0)
        assert (erb["lower"], erb["upper"]) == harmonic_mean_interval((8 - cats, 8), (hits["object"], 88))
        assert ua["by"] == "FakeScorer" and ua["strength"] == (None if edit == "no edit" else 0.7)


def test_erb_takes_the_concepts_near_the_target(pair):
    comparison = compare(*pair, "cat")
    near = rows_of(comparison, adjacent=["dog", "face"])["ERB", "object", "cat", "no-cat"]
    hits = sum(pair[1].tally(name).hits for name in ("dog", "face")) / 16
    assert near["value"] == pytest.approx(2 * hits / (1 + hits)) and near["n"] == 24
    with pytest.raises(ValueError, match="unknown other object 'cat'"):
        comparison.rows(adjacent=["cat"])


class Red:
    """The red of the first pixel, which tells the object."""

    name = "red"

    def measure(self, images, prompts):
        return {"red": torch.tensor([float(image.getpixel((0, 0))[0]) for image in images])}


class RedDistance:
    name = "red distance"

    def distances(self, before, after):
        reds = [torch.tensor([float(i.getpixel((0, 0))[0]) for i in images]) for images in (before, after)]
        return {"pairs": (reds[1] - reds[0]).abs(), "sets": (reds[1].mean() - reds[0].mean()).abs()}


def test_measures_and_distances_of_the_same_seeds():
    pipeline = FakePipeline()
    settings = {"measures": [Red()], "keep_images": True, "concepts": ["cat", "dog"]}
    before, after = run(pipeline, **settings), run(pipeline, edit=FakeEdit("cat"), **settings)
    comparison = compare(before, after, "cat", distances=[RedDistance()])
    changes = [b - a for a, b in zip(before.measured("cat")["red"], after.measured("cat")["red"], strict=True)]
    assert comparison.measures["target"]["red"].difference == pytest.approx(sum(changes) / 8) and max(changes) == 1
    rows = rows_of(comparison)
    change = rows["change of red", None, "target", "no-cat"]
    assert change["value"] == pytest.approx(sum(changes) / 8) and change["by"] == "red"
    pairs = rows["pairs to no edit", None, "target", "no-cat"]
    assert pairs["value"] == pytest.approx(sum(map(abs, changes)) / 8) and pairs["n"] == 8
    assert rows["sets to no edit", None, "target", "no-cat"]["value"] == pytest.approx(abs(sum(changes)) / 8)
    unmoved = rows["pairs to no edit", None, "others", "no-cat"]
    assert (unmoved["value"], unmoved["lower"]) == (0, None)
    saved = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert saved["distances"]["target"]["pairs"]["by"] == "red distance"
    assert saved["measures"]["others"]["red"]["difference"] == 0


def test_pictures_that_were_not_kept_or_judged_are_refused(pair):
    with pytest.raises(ValueError, match="evaluate with keep_images=True"):
        compare(*pair, "cat", distances=[RedDistance()])
    unjudged = evaluate(FakePipeline(), emoji_prompts(), None, measures=[Red()], per_concept=1, progress=False)
    with pytest.raises(ValueError, match="no scorer judged these pictures"):
        compare(unjudged, unjudged, "cat")


@pytest.mark.parametrize(
    "given, reason",
    [
        (torch.ones(3), r"gave shape \[3\] for 'd', expected \[\] or \[8\]"),
        (torch.tensor(float("nan")), "gave a 'd' that is not finite"),
    ],
)
def test_distances_that_are_none_are_refused(given, reason):
    pipeline = FakePipeline()
    kept = run(pipeline, keep_images=True)
    broken = SimpleNamespace(name="broken", distances=lambda before, after: {"d": given})
    with pytest.raises(ValueError, match=f"broken {reason}"):
        compare(kept, kept, "cat", distances=[broken])
    twice = SimpleNamespace(name="twice", distances=lambda before, after: {"pairs": torch.tensor(1.0)})
    with pytest.raises(ValueError, match="twice and another distance give 'pairs'"):
        compare(kept, kept, "cat", distances=[RedDistance(), twice])
