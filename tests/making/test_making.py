"""Erase and amplify in one call: what is recorded, chosen and noted, and what is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import cad_fast
from cad_fast import zoo
from cad_fast.attribution.measuring.plans import Target
from cad_fast.cli import main
from cad_fast.diffusion.denoisers import denoiser_of
from cad_fast.edits.damage import Expressed, objectives_under
from cad_fast.making import calls
from cad_fast.making.candidates import Candidate, choose
from cad_fast.making.concepts import concepts_to_keep, prompts_of
from cad_fast.objectives import objective_from_config
from cad_fast.recording.call import DenoiserCall
from tests.pipelines import flux, stable_diffusion

QUICK = {"samples": 2, "progress": False, "num_inference_steps": 3}
KEEP = {"dog": "a dog", "house": ["a house", "an old house"]}


def state(pipeline) -> list[torch.Tensor]:
    return [value.clone() for value in denoiser_of(pipeline).state_dict().values()]


@pytest.fixture(autouse=True, scope="module")
def few_sizes():
    """Two sizes to choose from, in place of five: what is tested is how, not how well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls, "RATIOS", (0.01, 0.06))
        yield


@pytest.fixture(scope="module")
def pipeline():
    return stable_diffusion()


@pytest.fixture(scope="module")
def edit(pipeline):
    return cad_fast.erase(pipeline, "a cat", keep=KEEP, guidance_scale=3.0, **QUICK)


def test_the_edit_fits_and_the_model_is_left_as_it_was(pipeline) -> None:
    before = state(pipeline)
    edit = cad_fast.erase(pipeline, "a cat", keep=KEEP, ratio=0.05, guidance_scale=3.0, **QUICK)
    assert all(map(torch.equal, before, state(pipeline)))
    assert edit.name == "a-cat-erase" and all("attn2.to_" in module for module in edit.components)
    assert edit.n_weights <= round(0.05 * sum(entry.rows * entry.columns for entry in edit.space) * 1.5)
    with edit.applied(pipeline):
        assert not all(map(torch.equal, before, state(pipeline)))
    assert all(map(torch.equal, before, state(pipeline)))


def test_what_was_done_is_noted(edit, tmp_path) -> None:
    edit.save_pretrained(tmp_path)
    provenance = json.loads((tmp_path / "edit_config.json").read_text())["provenance"]
    noted = provenance["making"]
    assert noted["by"] == "cad_fast.erase" and set(noted["keep"]) == {"dog", "house"}
    near = noted["neighbours"]
    assert set(near) == {"dog", "house"} and list(near) == sorted(near, key=lambda name: -near[name]["components"])
    assert all(0 <= each["components"] <= 1 and -1 <= each["prompts"] <= 1 for each in near.values())
    # Sizes grow, in each window, until one is enough or one moves the others too far.
    for window in {tuple(each["window"]) for each in noted["candidates"]}:
        tried = [each["ratio"] for each in noted["candidates"] if tuple(each["window"]) == window]
        assert tried == list(calls.RATIOS[: len(tried)])
    assert provenance["predicted"] in noted["candidates"] and noted["chosen_because"]
    assert provenance["prompts"] == ["a photo of a cat", "a picture of a cat"]
    assert " of the concept is left; " in edit.prediction() and "house" in edit.prediction()


def test_the_prediction_is_what_the_recording_shows(pipeline, edit) -> None:
    recording = cad_fast.record(
        pipeline, edit.provenance["prompts"], seeds=0, num_inference_steps=3, guidance_scale=3.0, progress=False
    )
    window = objective_from_config(edit.provenance["objective"]).timesteps
    measured = objectives_under(pipeline, edit, {"cat": Target(Expressed(window), recording)})["cat"]
    assert edit.provenance["predicted"]["left"] == pytest.approx(measured, rel=1e-3, abs=1e-4)
    intact = objectives_under(pipeline, edit, {"cat": Target(Expressed(window), recording)}, strength=0.0)["cat"]
    assert intact == pytest.approx(1, abs=1e-3)


def test_expressed_tells_the_base_from_beyond() -> None:
    call = DenoiserCall(
        step=0,
        timestep=1.0,
        inputs={"sample": torch.zeros(4, 4, 2, 2), "timestep": torch.tensor(1)},
        sample_key="sample",
        output=torch.full((4, 4, 2, 2), 3.0),
        unconditional_output=torch.ones(4, 4, 2, 2),
    )
    outputs = torch.tensor([3.0, 1.0, -1.0, 2.0])[:, None, None, None].expand(4, 4, 2, 2)
    torch.testing.assert_close(Expressed()(outputs, call), torch.tensor([1.0, 0.0, -1.0, 0.5]))


@pytest.mark.slow
def test_without_guidance_the_empty_prompt_is_the_base() -> None:
    pipeline = flux()
    edit = cad_fast.erase(pipeline, "a cat", keep=["a dog"], ratio=0.1, target_modules="attention", **QUICK)
    assert edit.provenance["objective"]["base"] == "base"
    assert edit.provenance["predicted"]["moved"]["a dog"] > 0


@pytest.mark.parametrize("images", [[Image.new("RGB", (64, 64), "red")] * 2, None])
def test_amplify(pipeline, images) -> None:
    edit = cad_fast.amplify(pipeline, "a cat", images=images, keep=["a dog"], guidance_scale=3.0, **QUICK)
    assert edit.name == "a-cat-amplify" and edit.provenance["objective"]["name"] == "denoising_loss"
    assert edit.provenance["selection"]["sign"] == "negative"
    assert edit.provenance["making"]["by"] == "cad_fast.amplify"
    assert edit.provenance["making"]["shown_by"] == ("images" if images else "samples")


def test_amplify_towards_the_original(pipeline) -> None:
    """The prediction is the share that is left of the distance from the original's outputs."""
    erased = copy.deepcopy(pipeline)
    with torch.no_grad():
        for name, parameter in denoiser_of(erased).named_parameters():
            if name.endswith("attn2.to_v.weight"):
                parameter[::8] *= 20
    before = state(pipeline) + state(erased)
    settings = {"keep": ["a dog"], "ratio": 0.05, "guidance_scale": 3.0, **QUICK}
    edit = cad_fast.amplify(erased, "a cat", original=pipeline, **settings)
    assert all(map(torch.equal, before, state(pipeline) + state(erased)))
    assert edit.provenance["making"]["shown_by"] == "original"
    recorded = {"seeds": 0, "num_inference_steps": 3, "guidance_scale": 3.0, "progress": False}
    towards = cad_fast.record_original(erased, pipeline, edit.provenance["prompts"], **recorded)
    target = {"cat": Target(cad_fast.DenoisingLoss(), towards)}
    after, now = (objectives_under(erased, edit, target, strength=strength)["cat"] for strength in (1.0, 0.0))
    assert edit.provenance["predicted"]["left"] == pytest.approx(after / now, rel=1e-3)
    with pytest.raises(ValueError, match="images and original both"):
        cad_fast.amplify(erased, "a cat", images=[Image.new("RGB", (64, 64))], original=pipeline, **settings)


def candidate(left: float, damage: float, seen: float | None = None) -> Candidate:
    return Candidate(0.1, None, left, {"dog": damage}, seen=seen)


def test_the_smallest_edit_that_does_enough_is_taken() -> None:
    sizes = [candidate(0.5, 0.01), candidate(-0.1, 0.02), candidate(-0.3, 0.14)]
    assert choose(sizes, "positive")[0] is sizes[1]
    sizes = [candidate(0.5, 0.01), candidate(0.4, 0.02), candidate(-0.3, 0.4)]
    assert choose(sizes, "positive")[0] is sizes[1]
    sizes = [candidate(0.5, 0.3), candidate(0.4, 0.2)]
    assert choose(sizes, "positive")[0] is sizes[1]
    sizes = [candidate(0.9, 0.01), candidate(0.7, 0.02), candidate(0.8, 0.01)]
    assert choose(sizes, "negative")[0] is sizes[1]


def test_what_the_model_sees_counts_more_than_what_is_predicted() -> None:
    sizes = [candidate(-0.2, 0.01, 0.5), candidate(-0.3, 0.02, 0.0), candidate(-0.5, 0.14, 0.0)]
    chosen, reason = choose(sizes, "positive")
    assert chosen is sizes[1] and "sees none of it" in reason
    sizes = [candidate(-0.2, 0.01, 0.5), candidate(-0.3, 0.02, 0.1), candidate(-0.9, 0.4)]
    assert choose(sizes, "positive")[0] is sizes[1]
    # One size more is taken where it costs little, and is enough itself.
    sizes = [candidate(-0.2, 0.01, 0.0), candidate(-0.3, 0.09, 0.0)]
    chosen, reason = choose(sizes, "positive")
    assert chosen is sizes[1] and "one size more" in reason
    for costs_or_shows in (candidate(-0.3, 0.11, 0.0), candidate(-0.3, 0.05, 0.1)):
        assert choose([sizes[0], costs_or_shows], "positive")[0] is sizes[0]
    # What the model says of what is kept counts more than how far outputs move.
    moves_but_keeps = replace(candidate(-0.3, 0.4, 0.0), kept=2 / 3)
    assert choose([candidate(-0.2, 0.01, 0.5), moves_but_keeps], "positive")[0] is moves_but_keeps
    assert not replace(candidate(-0.3, 0.15, 0.0), kept=1 / 3).gentle
    # What was not looked at is taken for seen.
    assert choose([candidate(0.3, 0.01), candidate(0.4, 0.02, 0.5)], "positive")[0].seen == 0.5


@pytest.mark.parametrize("name", zoo.MODELS)
def test_names_and_prompts(pipeline, name) -> None:
    embedded = zoo.load(name)
    assert zoo.name_of(embedded) == name and zoo.name_of(cad_fast.load_pipeline(f"zoo:{name}")) == name
    assert zoo.name_of(pipeline) is None
    assert prompts_of(embedded, "car", None) == zoo.prompts("car")
    assert prompts_of(pipeline, "car", None)[0] == "a photo of car"
    assert set(concepts_to_keep(embedded, "car", None)) == set(zoo.OBJECTS) - {"car", "book"}
    assert "a car" not in concepts_to_keep(pipeline, "car", None) and "a cat" in concepts_to_keep(pipeline, "car", None)
    assert concepts_to_keep(embedded, "noto", None).keys() == {"twemoji", "fluent"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"keep": []}, ValueError, "keep is empty"),
        ({"keep": "a dog"}, TypeError, "expected a list"),
        ({"keep": ["a cat"]}, ValueError, "to be changed and to be kept"),
        ({"prompts": []}, ValueError, "the prompts of 'a cat' are empty"),
        ({"target_modules": "nothing"}, ValueError, "matches target_modules 'nothing'"),
        ({"ratio": 2.0}, ValueError, "ratio is 2.0"),
        ({"samples": 0}, ValueError, "samples is 0"),
    ],
)
def test_wrong_input(pipeline, arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        cad_fast.erase(pipeline, "a cat", **{**QUICK, "keep": ["a dog"], "guidance_scale": 3.0, **arguments})


def test_an_edit_in_the_weights_is_named(pipeline, edit) -> None:
    with edit.applied(pipeline), pytest.raises(ValueError, match="edit 'a-cat-erase' is in the weights"):
        cad_fast.erase(pipeline, "a dog", keep=["a cat"], **QUICK)


@pytest.mark.parametrize("model", [f"zoo:{name}" for name in zoo.MODELS])
def test_the_commands(tmp_path, capsys, model) -> None:
    options = ["--keep", "cat", "--samples", "1", "--steps", "4", "--ratio", "0.03", "--quiet"]
    assert main(["erase", model, "car", *options, "-o", str(tmp_path / "no-car")]) == 0
    assert "of the concept is left" in capsys.readouterr().out
    edit = cad_fast.load_edit(tmp_path / "no-car")
    assert edit.name == "car-erase" and (tmp_path / "no-car" / "README.md").exists()
    own = zoo.generation(model.removeprefix("zoo:")).arguments
    assert edit.provenance["making"]["pipeline_kwargs"] == dict(own)
    assert main(["amplify", model, "book", *options, "--json", "-o", str(tmp_path / "more")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["name"] == "book-amplify" and result["predicted"]["ratio"] == 0.03
    from_original = ["--original", "zoo:emoji", *options, "-o", str(tmp_path / "back")]
    assert main(["amplify", "zoo:emoji", "car", *from_original]) == 2
    assert "the original gives the same outputs" in capsys.readouterr().err
    (tmp_path / "keep.json").write_text(json.dumps({"cat": ["a cat"]}))
    both = ["--keep-file", str(tmp_path / "keep.json"), "-o", str(tmp_path / "x")]
    assert main(["erase", model, "car", *options, *both]) == 2 and "give one" in capsys.readouterr().err
    assert main(["erase", model, "caar", *options[2:], "-o", str(Path(tmp_path) / "x")]) == 2
    assert "did you mean car" in capsys.readouterr().err
