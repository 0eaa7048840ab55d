"""Evaluation: pairing by seed, exact counts, and a pipeline that is left as it was."""

from __future__ import annotations

import csv
import json
import re

import pytest
import torch
from PIL import Image

from cad_fast.components.fingerprint import Fingerprint
from cad_fast.diffusion.generation import Generation
from cad_fast.evaluation import (
    Evaluation,
    LabelledPrompt,
    PromptSet,
    evaluate,
    evaluate_each,
    image_seed,
    wilson,
    write_csv,
)
from cad_fast.evaluation.rows import COLUMNS
from cad_fast.zoo.concepts import OBJECTS, STYLES
from cad_fast.zoo.prompt_set import emoji_prompts
from tests.evaluation.fakes import FakeEdit, FakePipeline, FakeScorer
from tests.pipelines import stable_diffusion

GENERATION = Generation(4, 3.0)
QUIET = {"progress": False, "generation": GENERATION}


def run(pipeline=None, **kwargs) -> Evaluation:
    return evaluate(pipeline or FakePipeline(), emoji_prompts(), FakeScorer(), **{**QUIET, **kwargs})


def pixels(evaluation: Evaluation) -> dict[str, list[bytes]]:
    return {concept: [image.tobytes() for image in images] for concept, images in evaluation.images.items()}


def test_counts_are_those_of_the_pictures():
    evaluation = run(per_concept=9, keep_images=True)
    assert evaluation.concepts == OBJECTS and evaluation.other_axes == ("style",)
    hits = 0
    for number, concept in enumerate(OBJECTS):
        shown = [image.getpixel((0, 0))[0] for image in evaluation.images[concept]]
        tally = evaluation.tally(concept)
        assert (tally.n, tally.hits) == (9, shown.count(number))
        assert tally.mean_probability == pytest.approx((0.89 * tally.hits + 0.01 * (9 - tally.hits)) / 9)
        assert evaluation.became(concept) == {OBJECTS[n]: shown.count(n) for n in sorted(set(shown))}
        assert tally.interval.lower <= tally.accuracy <= tally.interval.upper
        hits += tally.hits
    assert evaluation.tally().hits == hits and 0 < hits < 9 * 12
    assert evaluation.tally(axis="style").accuracy == 1
    summary = evaluation.summary()
    assert summary["concepts"]["cat"]["object"]["n"] == 9 and summary["overall"]["style"]["hits"] == 108


def test_prompts_of_a_concept_take_turns():
    evaluation = run(per_concept=7, concepts=["dog"])
    assert [outcome.labels["style"] for outcome in evaluation.outcomes] == [*STYLES, *STYLES, STYLES[0]]


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_pictures_do_not_depend_on_the_batch(batch_size):
    expected = run(per_concept=4, keep_images=True)
    evaluation = run(per_concept=4, batch_size=batch_size, keep_images=True)
    assert pixels(evaluation) == pixels(expected) and evaluation == expected


def test_pictures_do_not_depend_on_the_other_concepts_nor_on_their_number():
    everything = pixels(run(per_concept=6, keep_images=True))
    some = pixels(run(per_concept=4, concepts=["tree", "cat"], keep_images=True))
    assert some == {concept: everything[concept][:4] for concept in ("tree", "cat")}


def test_seeds_are_the_same_before_and_after_and_differ_elsewhere():
    pipeline = FakePipeline(error_rate=0)
    before = pixels(run(pipeline, per_concept=3, keep_images=True))
    after = run(pipeline, per_concept=3, keep_images=True, edit=FakeEdit("cat"))
    for concept, images in pixels(after).items():
        # Pixel 0 shows the object; all others show the noise of the seed.
        assert [image[3:] for image in images] == [image[3:] for image in before[concept]]
    assert len({image for images in before.values() for image in images}) == 36
    assert pixels(run(pipeline, per_concept=3, keep_images=True, seed=1))["cat"] != before["cat"]
    seeds = {image_seed(s, c, i) for s in range(3) for c in ("a", "b") for i in range(50)}
    assert len(seeds) == 300 and all(0 <= seed < 2**63 for seed in seeds)


def test_an_edit_is_on_during_the_run_only():
    pipeline, edit = FakePipeline(error_rate=0), FakeEdit("cat")
    fingerprint = Fingerprint.of(pipeline.unet)
    evaluation = run(pipeline, per_concept=2, edit=edit, strength=0.5)
    assert evaluation.tally("cat").hits == 0 and evaluation.tally("dog").hits == 2
    assert edit.strengths == [0.5] and pipeline.erased is None
    settings = evaluation.settings
    assert (settings.edit, settings.strength, settings.fingerprint) == ("no-cat", 0.5, fingerprint)
    assert (run(pipeline, per_concept=2).settings.edit, settings.axis) == (None, "object")


def test_an_interrupted_run_leaves_the_pipeline_unedited():
    pipeline = FakePipeline()
    pipeline.fail_at_call = 2
    with pytest.raises(KeyboardInterrupt):
        run(pipeline, per_concept=4, edit=FakeEdit("cat"))
    assert len(pipeline.calls) == 2 and pipeline.erased is None and torch.is_grad_enabled()


def test_arguments_reach_the_pipeline_and_the_settings():
    pipeline = FakePipeline()
    evaluation = run(pipeline, concepts=["cat"], per_concept=1, generation=Generation.of(GENERATION, height=8))
    call = pipeline.calls[0]
    assert (call["steps"], call["guidance"], call["height"]) == (4, 3.0, 8)
    assert evaluation.settings.generation == Generation(4, 3.0, {"height": 8})
    defaults = run(pipeline, concepts=["cat"], per_concept=1, generation=None)
    assert (pipeline.calls[1]["steps"], pipeline.calls[1]["guidance"]) == (50, 7.5)
    assert defaults.settings.generation == Generation()


def test_another_axis_can_be_the_main_one():
    evaluation = run(axis="style", per_concept=12)
    assert evaluation.concepts == STYLES and evaluation.other_axes == ("object",)
    assert {outcome.labels["object"] for outcome in evaluation.of("noto")} == set(OBJECTS)


def test_axes_that_the_scorer_does_not_know_are_left_out():
    prompts = PromptSet([LabelledPrompt("a cat in noto style", {"object": "cat", "mood": "calm"})])
    evaluation = evaluate(FakePipeline(), prompts, FakeScorer(), per_concept=2, **QUIET)
    assert evaluation.other_axes == ()


@pytest.mark.parametrize(
    "kwargs, reason",
    [
        ({"per_concept": 0}, "per_concept is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"concepts": []}, "number of concepts is 0"),
        ({"concepts": ["catt"]}, "unknown object 'catt'; did you mean 'cat'"),
        ({"axis": "styles"}, "unknown axis 'styles'; did you mean 'style'"),
        ({"generation": Generation(arguments={"latents": torch.zeros(1)})}, "'latents' .* must be a JSON value"),
    ],
)
def test_unfit_arguments_are_refused_before_anything_is_made(kwargs, reason):
    pipeline = FakePipeline()
    with pytest.raises(ValueError, match=reason):
        run(pipeline, **kwargs)
    assert not pipeline.calls


def test_labels_that_the_scorer_does_not_know_are_refused():
    prompts = PromptSet([LabelledPrompt("a cats in noto style", {"object": "cats"})])
    with pytest.raises(ValueError, match="the scorer cannot judge this: unknown object 'cats'; did you mean 'cat'"):
        evaluate(FakePipeline(), prompts, FakeScorer(), **QUIET)
    prompts = PromptSet([LabelledPrompt("a cat", {"concept": "cat"})])
    with pytest.raises(ValueError, match="the scorer cannot judge this: unknown axis 'concept'"):
        evaluate(FakePipeline(), prompts, FakeScorer(), **QUIET)


def test_scores_that_are_not_numbers_name_the_pictures():
    class Broken(FakeScorer):
        def __call__(self, images):
            return {axis: values * float("nan") for axis, values in super().__call__(images).items()}

    with pytest.raises(ValueError, match=r"gave \[nan.*axis 'object' of image 0 of 2.*images were dog 0, dog 1"):
        evaluate(FakePipeline(), emoji_prompts(), Broken(), concepts=["dog"], per_concept=2, **QUIET)


def test_pipelines_that_return_no_pictures_are_refused():
    class Odd(FakePipeline):
        def __call__(self, *args, **kwargs):
            result = super().__call__(*args, **kwargs)
            result.images = result.images[1:]
            return result

    with pytest.raises(ValueError, match="Odd did not return one PIL image per prompt"):
        run(Odd())
    with pytest.raises(TypeError, match="no denoiser found"):
        run(lambda **kwargs: None)


def test_saved_and_loaded_it_is_the_same(tmp_path):
    evaluation = run(per_concept=3, edit=FakeEdit("cat"), generation=Generation.of(GENERATION, eta=0.0))
    path = evaluation.save(tmp_path / "new" / "evaluation.json")
    assert Evaluation.load(path) == evaluation
    written = json.loads(path.read_text())
    assert written["summary"]["concepts"]["cat"]["object"]["hits"] == 0
    names = ("num_inference_steps", "guidance_scale", "pipeline_kwargs")
    assert [written["settings"][name] for name in names] == [4, 3.0, {"eta": 0.0}]


def _set(*keys_and_value):
    *keys, last, value = keys_and_value

    def change(data):
        for key in keys:
            data = data[key]
        data[last] = value

    return change


@pytest.mark.parametrize(
    "change, reason",
    [
        (_set("format", 99), "its format is 99"),
        (_set("outcomes", []), "it has no outcomes"),
        (lambda d: d["outcomes"].pop(), "outcomes of 'cat' are missing"),
        (lambda d: d.pop("settings"), "damaged evaluation: KeyError"),
        (_set("settings", "speed", 3), "damaged evaluation: TypeError"),
        (_set("settings", "scheduler", []), "its scheduler is"),
        (_set("settings", "per_concept", "2"), "its per_concept is '2'"),
        (_set("settings", "fingerprint", "samples", None), "damaged model fingerprint"),
        (_set("outcomes", 0, "probability", {"object": 2, "style": 1}), "probability outside 0..1"),
        (_set("outcomes", 1, "predicted", {"object": "cat"}), "judged on other axes"),
        (_set("outcomes", 1, "labels", None), "damaged evaluation"),
        (_set("outcomes", 7), "damaged evaluation"),
    ],
)
def test_damaged_files_are_named_with_the_reason(tmp_path, change, reason):
    path = run(per_concept=2, concepts=["cat"]).save(tmp_path / "damaged.json")
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        Evaluation.load(path)
    assert "damaged.json" in str(caught.value)


def test_unknown_concepts_and_axes_are_refused():
    evaluation = run(per_concept=1)
    with pytest.raises(ValueError, match="unknown object 'mooon'; did you mean 'moon'"):
        evaluation.tally("mooon")
    with pytest.raises(ValueError, match="unknown axis 'mood'"):
        evaluation.tally(axis="mood")


class SizeScorer:
    """For pictures that show nothing: calls every one a cat, as long as it is one of 16x16 pixels."""

    def __init__(self):
        self.axes = {"object": ("cat", "dog")}

    def __call__(self, images):
        assert all(isinstance(image, Image.Image) and image.size == (16, 16) for image in images)
        return {"object": torch.tensor([[0.7, 0.3]]).repeat(len(images), 1)}


def test_a_diffusers_pipeline_is_evaluated_and_left_as_it_was():
    pipeline = stable_diffusion()
    bar = dict(pipeline._progress_bar_config)
    prompts = PromptSet([LabelledPrompt(f"a {name}", {"object": name}) for name in ("cat", "dog")])
    settings = {"per_concept": 2, "generation": Generation(2), "keep_images": True, "progress": False}
    evaluation = evaluate(pipeline, prompts, SizeScorer(), batch_size=4, **settings)
    assert (evaluation.tally("cat").hits, evaluation.tally("dog").hits) == (2, 0)
    assert evaluation.settings.scheduler["_class_name"] == "DDIMScheduler"
    assert evaluation.settings.generation == Generation(2)
    assert pipeline._progress_bar_config == bar
    alone = evaluate(pipeline, prompts, SizeScorer(), batch_size=1, concepts=["dog"], **settings)
    for first, second in zip(evaluation.images["dog"], alone.images["dog"], strict=True):
        difference = torch.tensor(list(first.tobytes())).int() - torch.tensor(list(second.tobytes())).int()
        assert difference.abs().max() <= 1  # rounding may depend on the batch


class Noise:
    """The green of the last pixel, which is noise, and the length of the prompt."""

    name = "noise"

    def measure(self, images, prompts):
        green = [image.getpixel((7, 7))[1] for image in images]
        return {"green": torch.tensor(green), "length": torch.tensor([len(text) for text in prompts])}


def test_measures_belong_to_their_pictures():
    evaluation = run(measures=[Noise()], keep_images=True, per_concept=2, batch_size=5)
    assert evaluation.settings.measures == {"green": "noise", "length": "noise"}
    for concept, images in evaluation.images.items():
        measured = evaluation.measured(concept)
        assert measured["green"] == [image.getpixel((7, 7))[1] for image in images]
        assert measured["length"] == [len(outcome.prompt) for outcome in evaluation.of(concept)]
    greens = evaluation.measured()["green"]
    assert evaluation.summary()["overall"]["measures"]["green"]["mean"] == pytest.approx(sum(greens) / len(greens))


def test_without_a_scorer_there_are_measures_only(tmp_path):
    evaluation = evaluate(FakePipeline(), emoji_prompts(), None, measures=[Noise()], per_concept=1, **QUIET)
    assert not evaluation.judged and evaluation.settings.scorer is None
    assert {each["metric"] for each in evaluation.rows()} == {"green", "length"}
    assert Evaluation.load(evaluation.save(tmp_path / "measured.json")) == evaluation
    with pytest.raises(ValueError, match="no scorer judged these pictures"):
        evaluation.tally("cat")
    with pytest.raises(ValueError, match="no scorer and no measure"):
        evaluate(FakePipeline(), emoji_prompts(), None, **QUIET)
    with pytest.raises(ValueError, match="noise and noise both give 'green'"):
        run(measures=[Noise(), Noise()])


def test_several_scorers_judge_the_same_pictures():
    class Blind(FakeScorer):
        name = "blind"

        def __call__(self, images):
            return {axis: torch.eye(len(labels))[:1].expand(len(images), -1) for axis, labels in self.axes.items()}

    pipeline = FakePipeline()
    seeing, blind = evaluate_each(pipeline, emoji_prompts(), [FakeScorer(), Blind()], per_concept=2, **QUIET)
    assert sum(len(call["prompts"]) for call in pipeline.calls) == 2 * len(OBJECTS)
    assert seeing == run(per_concept=2)
    assert blind.settings.scorer == "blind" and blind.tally().hits == 2
    assert [outcome.seed for outcome in seeing.outcomes] == [outcome.seed for outcome in blind.outcomes]


def test_a_prompt_with_a_seed_has_it_for_its_first_picture():
    prompts = PromptSet(
        [
            LabelledPrompt("a cat in noto style", {"object": "cat"}, 41),
            LabelledPrompt("a cat in fluent style", {"object": "cat"}),
        ]
    )
    evaluation = evaluate(FakePipeline(), prompts, FakeScorer(), per_concept=4, **QUIET)
    assert [outcome.seed for outcome in evaluation.outcomes] == [41, *(image_seed(0, "cat", i) for i in (1, 2, 3))]
    other = evaluate(FakePipeline(), prompts, FakeScorer(), per_concept=4, seed=1, **QUIET)
    assert other.outcomes[0].seed == 41 and other.outcomes[1].seed == image_seed(1, "cat", 1)


def test_rows_are_flat_and_become_csv(tmp_path):
    evaluation = run(edit=FakeEdit("cat"), strength=0.5, measures=[Noise()], per_concept=2)
    rows = evaluation.rows()
    assert all(tuple(each) == COLUMNS for each in rows)
    assert len(rows) == (len(OBJECTS) + 1) * 4
    (cat,) = [each for each in rows if (each["metric"], each["axis"], each["of"]) == ("accuracy", "object", "cat")]
    assert (cat["value"], cat["n"], cat["by"]) == (0, 2, "FakeScorer")
    assert (cat["edit"], cat["strength"], cat["lower"], cat["upper"]) == ("no-cat", 0.5, *wilson(0, 2))
    assert {each["edit"] for each in run(per_concept=1).rows()} == {"no edit"}
    with open(write_csv(tmp_path / "rows.csv", rows), newline="") as file:
        read = list(csv.DictReader(file))
    assert [each["of"] for each in read] == [each["of"] for each in rows]
    assert [float(each["value"]) for each in read] == [each["value"] for each in rows]
    assert read[0]["edit"] == "no-cat" and read[2]["axis"] == ""
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    table = pandas.DataFrame(rows)
    assert list(table.columns) == list(COLUMNS) and table["value"].dtype == float
