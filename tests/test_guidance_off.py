"""Few steps and guidance off, as for FLUX-dev, Turbo and LCM: objectives compare with a base prompt and say so."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
import torch

import cad_fast
from cad_fast import Ablation, ConceptErasure, zoo
from cad_fast.attribution import Attributor, Scores
from cad_fast.attribution.compare import compare_estimators
from cad_fast.cli import main
from cad_fast.edits import Edit, Selection, refine, replayed_damage
from cad_fast.objectives import fitted
from cad_fast.recording.data import Recording
from cad_fast.recording.record import record, with_base
from cad_fast.search.budget import Rule
from cad_fast.zoo.prompt_set import emoji_prompts
from tests.attribution.common import assert_close
from tests.pipelines import stable_diffusion

STEPS = 4
MODULES = "cross-attention-kv"


def drawn(name: str, pipeline, prompts, guidance: float = 1.0) -> Recording:
    generation = cad_fast.Generation.of(zoo.generation(name), num_inference_steps=STEPS, guidance_scale=guidance)
    return record(pipeline, prompts, seeds=0, progress=False, **generation.to_kwargs())


@pytest.fixture(scope="module", params=zoo.MODELS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def pipeline(name):
    return zoo.load(name)


@pytest.fixture(scope="module")
def recording(name, pipeline) -> Recording:
    return drawn(name, pipeline, zoo.prompts("car")[:2])


def said(caplog) -> list[str]:
    return [entry.message for entry in caplog.records if entry.message.startswith("guidance is off")]


def test_attribution_falls_back_on_the_empty_prompt_and_says_so(pipeline, recording, caplog) -> None:
    assert recording.n_steps == STEPS and recording.calls[0].unconditional_output is None
    attributor = Attributor(pipeline, target_modules=MODULES)
    with caplog.at_level(logging.WARNING):
        scores = attributor.run(recording, concept="car", holdout=8, progress=False)
    assert said(caplog) == ["guidance is off: concept_erasure compares with the output for the empty prompt"]
    assert recording.calls[0].base_output is None  # the user's recording is left as it was
    assert scores.provenance["objective"]["base"] == "base" and scores.provenance["base_prompts"] == ["", ""]
    by_hand = with_base(recording, pipeline, "", progress=False)
    expected = Attributor(pipeline, ConceptErasure("base"), target_modules=MODULES).run(by_hand, progress=False)
    assert torch.equal(scores.values, expected.values) and float(scores.values.norm()) > 0
    assert scores.provenance["cost"]["recorded_denoiser_calls"] == by_hand.denoiser_calls
    ablations = [Ablation.random(len(scores), 0.05, seed) for seed in range(2)]
    given = Attributor(pipeline, ConceptErasure("base"), target_modules=MODULES)
    assert torch.equal(
        attributor.measured(recording, ablations, progress=False), given.measured(by_hand, ablations, progress=False)
    )


def test_the_empty_prompt_is_what_guidance_would_have_compared_with(name, pipeline) -> None:
    """With guidance on both are there: the base output for "" is the unconditional output."""
    guided = with_base(drawn(name, pipeline, ["a cat in noto style"], guidance=3.0), pipeline, "", progress=False)
    for call in guided.calls:
        assert_close(call.base_output, call.unconditional_output, 1e-4)
    objective = ConceptErasure()
    assert fitted(objective, guided, pipeline) == (objective, guided)


def test_erase_with_few_steps_and_guidance_off(name, pipeline, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        edit = cad_fast.erase(
            pipeline,
            "car",
            keep=["cat"],
            ratio=0.06,
            samples=3,
            progress=False,
            num_inference_steps=STEPS,
            guidance_scale=1.0,
        )
    assert len(said(caplog)) == 1 and edit.provenance["objective"]["base"] == "base"
    assert edit.provenance["predicted"]["left"] < 0.5  # 1 is the whole concept
    assert edit.provenance["predicted"]["moved"]["cat"] < 0.5


def test_refining_and_damage_fall_back_too(pipeline, recording, caplog) -> None:
    scores = Attributor(pipeline, target_modules=MODULES).run(recording, progress=False)
    selection = Selection(0.03)
    refined = refine(pipeline, recording, scores, selection, rounds=1, progress=False)
    assert refined.provenance["refined"]["objective"]["base"] == "base"
    edit = Edit.from_scores(refined, selection)
    based = with_base(recording, pipeline, "", progress=False)
    damage = replayed_damage(pipeline, edit, {"car": recording})
    assert damage == replayed_damage(pipeline, edit, {"car": based}) and damage["car"] > 0


def test_a_search_for_an_edit_falls_back_once_for_all_its_concepts(name, pipeline, caplog) -> None:
    budget = cad_fast.Budget("car", {"cat": 50})
    with caplog.at_level(logging.WARNING):
        search = cad_fast.EditSearch.prepare(
            pipeline,
            budget,
            emoji_prompts(),
            zoo.scorer(),
            target_modules=MODULES,
            samples=1,
            generation=cad_fast.Generation.of(zoo.generation(name), num_inference_steps=2, guidance_scale=1.0),
            rules=(Rule("refined", refined=True),),
            ratios=(0.03,),
            progress=False,
        )
    assert len(said(caplog)) == 1 and search.objective.base == "base"
    (candidate,) = search.candidates()
    assert candidate.edit.provenance["refined"]["objective"]["base"] == "base"
    assert candidate.left > 0 and 0 < candidate.moved["cat"] < 1


def test_many_concepts_and_comparisons(caplog) -> None:
    pipeline = stable_diffusion()
    cat, car = (
        record(pipeline, text, num_inference_steps=2, guidance_scale=1.0, progress=False) for text in ("a cat", "a car")
    )
    with caplog.at_level(logging.WARNING):
        scores = Attributor(pipeline, target_modules=MODULES).run_many({"cat": cat, "car": car}, progress=False)
    assert len(said(caplog)) == 2 and {one.provenance["objective"]["base"] for one in scores.values()} == {"base"}
    space = next(iter(scores.values())).space
    points = compare_estimators(pipeline, cat, None, space, holdout=8, partitions=(1,), ablations=(8,), progress=False)
    assert len(points) >= 4


def test_another_base_prompt_is_kept_and_named(caplog, tmp_path) -> None:
    pipeline = stable_diffusion()
    plain = record(pipeline, ["a cat", "a dog"], num_inference_steps=2, guidance_scale=1.0, progress=False)
    recording = with_base(plain, pipeline, ["a photo", ""], progress=False)
    with caplog.at_level(logging.WARNING):
        objective, same = fitted(ConceptErasure(), recording, pipeline)
    assert same is recording and objective.base == "base"
    assert said(caplog) == [
        "guidance is off: concept_erasure compares with the output for 'a photo' or the empty prompt"
    ]
    loaded = Recording.load(recording.save(tmp_path))
    assert loaded.base_prompts == ["a photo", ""] and loaded.select(rows=[1]).base_prompts == [""]
    assert Recording.concat([loaded, loaded]).base_prompts == ["a photo", ""] * 2
    with pytest.raises(ValueError, match="base_prompts has 1 rows, but there are 2 prompts"):
        replace(loaded, base_prompts=["a photo"])
    Recording.load(plain.save(tmp_path / "plain"))
    path = tmp_path / "plain" / "recording.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in state.items() if key != "base_prompts"}))
    assert Recording.load(tmp_path / "plain").base_prompts is None  # of a version that did not keep them
    path.write_text(json.dumps({**state, "base_prompts": [1, 2]}))
    with pytest.raises(ValueError, match=r"'base_prompts'.*a list of texts or null"):
        Recording.load(tmp_path / "plain")


@pytest.mark.parametrize(
    "objective", [ConceptErasure("unconditional"), ConceptErasure(both_branches=True)], ids=["explicit", "both"]
)
def test_an_explicit_choice_is_refused(objective, caplog) -> None:
    pipeline = stable_diffusion()
    recording = record(pipeline, "a cat", num_inference_steps=2, guidance_scale=1.0, progress=False)
    with pytest.raises(ValueError, match="made without classifier-free guidance"):
        Attributor(pipeline, objective, target_modules=MODULES).run(recording, progress=False)
    assert not said(caplog)


def test_a_bare_denoiser_has_nothing_to_draw_the_base_with(caplog) -> None:
    pipeline = stable_diffusion()
    recording = record(pipeline, "a cat", num_inference_steps=2, guidance_scale=1.0, progress=False)
    attributor = Attributor(pipeline.unet, target_modules=MODULES)
    with pytest.raises(ValueError, match=r"without classifier-free guidance.*with_base"):
        attributor.run(recording, progress=False)
    based = with_base(recording, pipeline, "", progress=False)
    assert attributor.run(based, progress=False).provenance["objective"]["base"] == "base"


def test_on_the_command_line(tmp_path, caplog) -> None:
    """Scores made with guidance off are refined with the base prompt that they compare with."""
    sampling = ["--steps", STEPS, "--guidance-scale", 1, "--samples", 1, "--quiet"]
    what = ["--concept", "car", "--target-modules", MODULES, *sampling]
    with caplog.at_level(logging.WARNING):
        assert main([*map(str, ["attribute", "zoo:emoji", *what, "-o", tmp_path / "car"])]) == 0
    assert len(said(caplog)) == 1
    assert Scores.load(tmp_path / "car").provenance["base_prompts"] == [""]
    refining = ["--refine", "zoo:emoji", "--samples", 2, "--rounds", 1, "--quiet"]
    command = ["edit", "make", tmp_path / "car", "--erase", "--ratio", 0.03, *refining, "-o", tmp_path / "edit"]
    assert main([*map(str, command)]) == 0
    refined = Edit.from_pretrained(tmp_path / "edit").provenance["refined"]
    assert refined["objective"]["base"] == "base" and len(refined["seeds"]) == 2
