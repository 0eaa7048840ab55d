"""cad_fast inside eval-unlearn: found by its entry point, run by its runner, seeds by picture."""

from __future__ import annotations

import csv
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch

import cad_fast
from cad_fast import zoo
from cad_fast.components.space import ComponentSpace
from cad_fast.diffusion.generation import Generation
from cad_fast.edits.edit import Edit
from cad_fast.integrations.eval_unlearn import CadFastTechnique

STEPS = {"num_inference_steps": 2}
CLIP = "openai/clip-vit-base-patch32"


@pytest.fixture(scope="module")
def edit_folder(tmp_path_factory) -> Path:
    """An edit that removes half of what the prompts act through: pictures show that it acts."""
    space = ComponentSpace.of(zoo.load(), "weight", "cross-attention-kv")
    folder = tmp_path_factory.mktemp("edit")
    Edit.from_indices("half", space, torch.arange(0, space.n, 2)).save_pretrained(folder)
    return folder


def same(left: list, right: list) -> list[bool]:
    """Whether two lists of pictures agree, up to the rounding of other batches."""
    levels = [
        (torch.tensor(list(a.tobytes())) - torch.tensor(list(b.tobytes()))).abs().max()
        for a, b in zip(left, right, strict=True)
    ]
    return [bool(level <= 1) for level in levels]


def test_seeds_belong_to_pictures_and_not_to_batches():
    prompts = ["a cat in noto style", "a car in noto style", "a cat in noto style"]
    whole = CadFastTechnique(model="zoo:emoji", generation=STEPS).generate(prompts, seed=3)
    technique = CadFastTechnique(model="zoo:emoji", generation=STEPS, batch_size=2)
    parts = [technique.generate([prompt], seed=3)[0] for prompt in prompts]
    assert same(whole, parts) == [True] * 3
    assert same(whole[:1], whole[2:]) == [False], "a prompt that comes again is drawn anew"
    assert same(whole, CadFastTechnique(model="zoo:emoji", generation=STEPS).generate(prompts)) == [False] * 3


def test_the_edit_acts_in_its_pictures_and_in_no_others(edit_folder):
    prompts = ["a cat in noto style", "a car in noto style"]
    technique = CadFastTechnique(model="zoo:emoji", edit=str(edit_folder), generation=STEPS)
    before = technique.pipeline.unet.state_dict()
    kept = {name: value.clone() for name, value in before.items()}
    edited = technique.generate(prompts, seed=0)
    assert all(torch.equal(value, kept[name]) for name, value in before.items())
    plain = CadFastTechnique(model="zoo:emoji", generation=STEPS).generate(prompts, seed=0)
    off = CadFastTechnique(model="zoo:emoji", edit=str(edit_folder), strength=0.0, generation=STEPS)
    assert same(edited, plain) == [False] * 2 and same(off.generate(prompts, seed=0), plain) == [True] * 2
    assert same(plain, technique.generate(prompts, seed=0, guidance_scale=1.0)) == [False] * 2


def test_a_concept_is_erased_as_erase_does():
    erasing = {"samples": 1, "ratio": 0.02, "keep": ["dog"]}
    technique = CadFastTechnique(model="zoo:emoji", erase_concept="cat", erasing=erasing, generation=STEPS)
    edit = cad_fast.erase(zoo.load(), "cat", seed=0, progress=False, **erasing, **STEPS)
    assert technique.edit.digest() == edit.digest()


def test_zoo_models_have_their_own_settings():
    assert CadFastTechnique(model="zoo:emoji").generation == zoo.generation()
    assert CadFastTechnique(model="zoo:emoji", generation=STEPS).generation == Generation(2, 3.0)


@pytest.mark.parametrize(
    "config, reason",
    [
        ({}, "has no 'model'"),
        ({"model": "zoo:emoji", "edti": "x"}, "unknown argument 'edti'; did you mean 'edit'"),
        ({"model": "zoo:emoji", "batch_size": 0}, "batch_size is 0"),
        ({"model": "zoo:emoji", "erasing": {"ratio": 0.1}}, "goes with 'erase_concept'"),
        ({"model": "zoo:emoji", "loading": {"dtpye": "bfloat16"}}, "'loading': unknown argument 'dtpye'"),
        ({"model": "zoo:emoji", "erase_concept": "cat", "erasing": {"seed": 1}}, "'erasing': unknown argument 'seed'"),
    ],
)
def test_configs_are_refused_by_name(config, reason):
    with pytest.raises(ValueError, match=reason):
        CadFastTechnique(**config)


def test_the_entry_point_is_this_class():
    pytest.importorskip("eval_unlearn", reason="eval-unlearn is not installed")
    (entry,) = entry_points(group="eval_unlearn.techniques", name="cad_fast")
    assert entry.load() is CadFastTechnique


@pytest.fixture
def metric_plugin(tmp_path, monkeypatch) -> None:
    """The metric of this folder as an installed package that names it in the group of eval-unlearn's metrics."""
    pytest.importorskip("eval_unlearn", reason="eval-unlearn is not installed")
    site = tmp_path / "site"
    information = site / "emoji_metric-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: emoji-metric\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(
        "[eval_unlearn.metrics]\nemoji_accuracy = emoji_accuracy:EmojiAccuracy\n"
    )
    (site / "emoji_accuracy.py").write_text((Path(__file__).parent / "emoji_accuracy.py").read_text())
    monkeypatch.syspath_prepend(str(site))
    yield
    sys.modules.pop("emoji_accuracy", None)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_its_runner_runs_the_technique(metric_plugin, edit_folder, tmp_path, batch_size):
    from eval_unlearn.runners import SingleBenchmarkRunner

    objects = ["cat", "dog", "car", "moon"]
    report = SingleBenchmarkRunner(
        "cad_fast",
        "emoji_accuracy",
        {"model": "zoo:emoji", "edit": str(edit_folder), "erase_concept": "cat", "generation": {**STEPS}},
        {"objects": objects, "batch_size": batch_size},
        output_dir=str(tmp_path / "results"),
        seed=7,
    ).run()
    technique = CadFastTechnique(model="zoo:emoji", edit=str(edit_folder), generation=STEPS)
    drawn = technique.generate([zoo.caption(name, "noto") for name in objects], seed=7)
    seen = [zoo.OBJECTS[i] for i in zoo.scorer()(drawn)["object"].argmax(1).tolist()]
    hits = sum(a == b for a, b in zip(seen, objects, strict=True))
    assert report["metric_result"] == {"name": "emoji accuracy", "value": hits / 4, "details": {"n": 4}}
    assert (report["technique_name"], report["erase_concept"]) == ("cad_fast", "cat")
    saved = {path.parent.name: zoo.opened([path])[0] for path in (tmp_path / "results").rglob("*.png")}
    assert same([saved[name] for name in objects], drawn) == [True] * 4


def test_its_ua_ira_judges_the_technique(tmp_path):
    """In one batch: in a second one the metric takes the first pictures for the target's again."""
    pytest.importorskip("eval_unlearn", reason="eval-unlearn is not installed")
    from huggingface_hub import try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(CLIP, "config.json"), str):
        pytest.skip(f"{CLIP} is not in the cache of the Hub")
    from eval_unlearn.runners import MultiBenchmarkRunner

    paths = {}
    for name, concept in (("target", "cat"), ("retain", "car")):
        paths[f"{name}_prompts_path"] = str(tmp_path / f"{name}.csv")
        with open(paths[f"{name}_prompts_path"], "w", newline="") as file:
            csv.writer(file).writerows([["prompt"], *([text] for text in zoo.prompts(concept))])
    metric = {**paths, "target_concept": "cat", "retain_concept": "car", "clip_model_name": CLIP, "batch_size": 6}
    config = {"model": "zoo:emoji", "generation": {"num_inference_steps": 4}}
    runner = MultiBenchmarkRunner(
        "cad_fast", ["ua_ira"], config, {"ua_ira": metric}, output_dir=str(tmp_path / "results"), seed=0
    )
    details = runner.run()["metric_results"]["ua_ira"]["details"]
    assert details["target_total"] == details["retain_total"] == 3
