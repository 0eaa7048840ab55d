"""The search for an edit within a budget, on the embedded model with few steps and pictures."""

import copy
import json
from dataclasses import replace

import pytest
import torch

from cad_fast import zoo
from cad_fast.cli import main
from cad_fast.components.space import ComponentSpace
from cad_fast.diffusion.generation import Generation
from cad_fast.edits import Edit, active_edits, replayed_damage
from cad_fast.evaluation import LabelledPrompt, PromptSet
from cad_fast.recording.record import record
from cad_fast.search.budget import Budget, Rule
from cad_fast.search.search import EditSearch, predicted_table
from cad_fast.zoo.prompt_set import emoji_prompts

RULES = (Rule("scores"), Rule("gain against damage", keep_weight=0.5, exponent=0.5))


@pytest.fixture(scope="module")
def pipeline():
    return zoo.load()


def search_of(pipeline, budget, folder, prompts=None, scorer=None, **settings):
    arguments = {"rules": RULES, "ratios": (0.01, 0.04, 0.1), "per_concept": 2, "confirming": 3, "progress": False}
    return EditSearch.prepare(
        pipeline,
        budget,
        prompts or emoji_prompts(),
        scorer or zoo.scorer(),
        target_modules="cross-attention-kv",
        timesteps=(700, 1000),
        samples=2,
        generation=Generation(4, 3.0),
        output_dir=folder,
        **{**arguments, **settings},
    )


@pytest.fixture(scope="module")
def search(pipeline, tmp_path_factory):
    return search_of(pipeline, Budget("car", {"face": 50, "cat": 50}, at_most=40), tmp_path_factory.mktemp("search"))


@pytest.fixture(scope="module")
def found(search):
    return search.run()


def test_a_search_draws_only_what_it_needs_and_leaves_the_pipeline_alone(search, found, pipeline):
    assert not active_edits(pipeline)
    assert found.comparison.targets == ("car",) and set(found.comparison.concepts) == {"car", "cat", "face"}
    assert 2 <= len(found.tried) <= 4, "two rules, of three ratios each at most two are drawn"
    assert found.met == (not search.budget.shortfalls(found.comparison))
    assert found.edit.provenance["budget"]["keep"] == {"face": 50, "cat": 50}
    json.dumps(found.to_dict())


def test_the_least_damaging_of_those_within_the_budget_is_chosen(found):
    best = min(found.tried, key=lambda tried: (sum(tried.missed.values()), tried.candidate.damage))
    assert found.candidate is best.candidate
    assert torch.equal(
        torch.cat(list(found.edit.components.values())), torch.cat(list(best.candidate.edit.components.values()))
    )


def test_a_search_goes_on_from_what_was_drawn(search, found, monkeypatch):
    import cad_fast.search.search as module

    drawn = []
    original = module.evaluate
    monkeypatch.setattr(module, "evaluate", lambda *a, **k: drawn.append(k["per_concept"]) or original(*a, **k))
    search._before.clear()
    again = search.run()
    assert drawn == [3, 3], "only the confirming pictures, before and after"
    assert again.to_dict() == found.to_dict()


def test_candidates_are_predicted_before_anything_is_applied(search):
    candidates = search.candidates()
    assert len(candidates) == 6
    for rule in RULES:
        own = [candidate.damage for candidate in candidates if candidate.rule == rule]
        assert own == sorted(own) and own[0] > 0
    lines = predicted_table(candidates).splitlines()
    assert len(lines) == 7 and "scores" in lines[1] and "4.0%" in "".join(lines)


def test_a_prompt_that_makes_no_difference_has_no_damage(pipeline):
    recording = record(pipeline, "a cat", negative_prompt="a cat", num_inference_steps=2, progress=False)
    edit = Edit.from_indices("e", ComponentSpace.of(pipeline, "weight", "cross-attention-kv"), torch.tensor([3]))
    with pytest.raises(ValueError, match=r"row 0 at step 0 has the same output with its prompt and without"):
        replayed_damage(pipeline, edit, {"cat": recording})


def test_the_replayed_damage_is_that_of_the_edited_weights(pipeline, search):
    edit = search.candidates()[2].edit
    recording = record(pipeline, ["a face in noto style"], num_inference_steps=4, guidance_scale=3.0, progress=False)
    before = pipeline.unet.state_dict()["conv_out.weight"].clone()
    found = replayed_damage(pipeline, edit, {"face": recording}, timesteps=(700, 1000), strength=0.5)["face"]
    assert torch.equal(before, pipeline.unet.state_dict()["conv_out.weight"])
    ratios = []
    with edit.applied(pipeline, 0.5), torch.no_grad():
        for call in recording.select(timesteps=(700, 1000)).calls:
            moved = (call.run(pipeline.unet).double() - call.output).square().sum()
            ratios.append((moved / (call.output.double() - call.unconditional_output).square().sum()).item())
    assert found == pytest.approx(sum(ratios) / len(ratios), rel=1e-3)


def test_a_budget_that_cannot_be_met_says_by_how_much(pipeline):
    budget = Budget("car", {"face": 100, "style": 100}, at_most=0)
    search = search_of(pipeline, budget, None, rules=RULES[:1], ratios=(0.9,), per_concept=1, confirming=1)
    result = search.run()
    assert not result.met and set(result.missed) <= {"car", "face", "style"}
    assert all(points > 0 for points in result.missed.values())


def test_a_folder_of_another_search_is_refused(pipeline, search):
    with pytest.raises(ValueError, match="holds a search whose per_concept is 2, not 3"):
        search_of(pipeline, search.budget, search.output_dir, per_concept=3)


def test_what_is_missing_is_named(pipeline, search):
    budget = Budget("car", {"others": 90})
    with pytest.raises(ValueError, match="no recording of 'dog'"):
        EditSearch(
            pipeline,
            budget,
            search.prompts,
            search.scorer,
            search.scores,
            search.sensitivity,
            search.recordings,
            search.objective,
        )
    with pytest.raises(ValueError, match="no ratios"):
        search_of(pipeline, search.budget, None, ratios=())


class OnlyObjects:
    """The objects of another scorer, renamed so that their names are no names of edits; it judges no style."""

    def __init__(self, scorer):
        self.scorer = scorer
        self.axes = {"object": tuple(f"A {name}" for name in scorer.axes["object"])}

    def __call__(self, images):
        return {"object": self.scorer(images)["object"]}


def renamed_prompts():
    return PromptSet(
        LabelledPrompt(each.prompt, {**each.labels, "object": f"A {each.labels['object']}"})
        for each in emoji_prompts()
        if each.labels["object"] in ("car", "cat")
    )


def test_concepts_may_have_any_name(pipeline):
    budget = Budget("A car", {"A cat": 0}, at_most=100)
    settings = {"rules": RULES[:1], "ratios": (0.1,), "per_concept": 1, "confirming": 1}
    found = search_of(pipeline, budget, None, renamed_prompts(), OnlyObjects(zoo.scorer()), **settings).run()
    assert found.met and found.edit.name == "a-car-erase"


def test_an_axis_that_the_scorer_does_not_judge_cannot_be_kept(pipeline, monkeypatch):
    monkeypatch.setattr("cad_fast.search.search.record", lambda *_, **__: pytest.fail("recorded before it was checked"))
    with pytest.raises(ValueError, match="cannot judge what is to be kept: unknown axis 'style'"):
        search_of(pipeline, Budget("A car", {"style": 90}), None, renamed_prompts(), OnlyObjects(zoo.scorer()))


def test_scores_are_refined_once_for_all_strengths(pipeline, search, monkeypatch):
    import cad_fast.search.search as module

    refined = []
    monkeypatch.setattr(module, "refine", lambda *a, **k: refined.append(a[3].ratio) or a[2])
    rule = Rule("refined", keep_weight=0.5, refined=True)
    many = replace(search, rules=(rule,), ratios=(0.01, 0.04), strengths=(0.5, 1.0), output_dir=None, _refined={})
    assert len(many.candidates()) == 4 and refined == [0.01, 0.04]


def test_candidates_are_tried_from_the_least_to_the_most_damaging(search, found):
    again = search.run(search.candidates()[::-1])
    assert again.to_dict()["chosen"] == found.to_dict()["chosen"]
    with pytest.raises(ValueError, match="none of the 0 candidates"):
        search.run([])


def test_a_search_that_cannot_begin_leaves_no_settings(pipeline, search, tmp_path):
    with pytest.raises(ValueError, match="no strengths"):
        replace(search, output_dir=tmp_path / "new", strengths=())
    assert not (tmp_path / "new").exists()


def test_a_folder_of_an_earlier_version_is_gone_on_with(search, tmp_path):
    """It did not name further arguments of the pipeline where there were none."""
    settings = json.loads((search.output_dir / "settings.json").read_text())
    del settings["pipeline_kwargs"]
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    replace(search, output_dir=tmp_path)
    with pytest.raises(ValueError, match="holds a search whose num_inference_steps is 4, not 5"):
        replace(search, output_dir=tmp_path, generation=Generation(5, 3.0))
    with pytest.raises(ValueError, match=r"holds a search whose pipeline_kwargs is \{\}, not"):
        replace(search, output_dir=tmp_path, generation=Generation(4, 3.0, {"eta": 1.0}))


def test_another_scheduler_is_another_search(pipeline, search):
    other = copy.copy(pipeline)
    other.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, beta_end=0.1)
    with pytest.raises(ValueError, match="holds a search whose scheduler is another"):
        replace(search, pipeline=other)


def test_the_command(tmp_path, capsys):
    arguments = ["budget", "zoo:emoji", "--erase", "car", "--keep", "face=0", "--at-most", "100", "--steps", "3"]
    arguments += ["--timesteps", "600", "1000", "--ratios", "0.02", "--samples", "1", "--per-concept", "1"]
    arguments += ["--confirming", "1", "--quiet"]
    assert main([*arguments, "-o", str(tmp_path / "predicted"), "--predict-only", "--json"]) == 0
    predicted = json.loads(capsys.readouterr().out)["predicted"]
    assert {entry["rule"] for entry in predicted} >= {"scores", "gain against damage"}
    assert not (tmp_path / "predicted" / "edit_config.json").exists()
    assert main([*arguments, "-o", str(tmp_path / "edit")]) == 0
    out = capsys.readouterr().out
    assert "nothing applied yet" in out and "within the budget" in out
    edit = Edit.from_pretrained(tmp_path / "edit")
    assert edit.provenance["budget"]["erase"] == "car" and edit.provenance["evaluation"]["targets"] == ["car"]
    assert (tmp_path / "edit" / "sheet.png").exists() and (tmp_path / "edit" / "search" / "search.json").exists()
    assert main([*arguments[:4], "--keep", "face", "-o", str(tmp_path / "x")]) == 2
    assert "expected NAME=PERCENT" in capsys.readouterr().err
