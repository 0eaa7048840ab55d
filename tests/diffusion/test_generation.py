"""How a pipeline generates: an object that checks itself, becomes JSON, and gives a pipeline's keyword arguments."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
import torch

import cad_fast
from cad_fast.diffusion.arguments import split_rows
from cad_fast.diffusion.generation import Generation
from tests.pipelines import flux, stable_diffusion


class Pipeline:
    def __call__(self, prompt, num_inference_steps=30, guidance_scale=None, eta=0.0):
        raise AssertionError


class Unguided:
    def __call__(self, prompt, num_inference_steps=2):
        raise AssertionError


def test_it_is_public_compared_and_printed() -> None:
    generation = cad_fast.Generation(20, 3, {"height": 8})
    assert generation == Generation.of(num_inference_steps=20, guidance_scale=3.0, height=8)
    assert generation != Generation(20, 3.0) and len({generation, Generation.of(generation), Generation()}) == 2
    assert repr(generation) == "Generation(num_inference_steps=20, guidance_scale=3.0, arguments={'height': 8})"
    assert repr(Generation()) == "Generation()"


def test_it_cannot_be_changed_from_outside() -> None:
    arguments = {"height": 8}
    generation = Generation(arguments=arguments)
    arguments["height"] = 16
    assert generation.arguments == {"height": 8}
    with pytest.raises(TypeError):
        generation.arguments["height"] = 16  # type: ignore[index]
    for twin in (copy.deepcopy(generation), pickle.loads(pickle.dumps(generation))):
        assert twin == generation and twin.to_kwargs() == {"height": 8}


@pytest.mark.parametrize(
    "fields, error, message",
    [
        ({"num_inference_steps": 0}, ValueError, "num_inference_steps is 0, expected at least 1, or None"),
        ({"num_inference_steps": 2.0}, TypeError, "num_inference_steps is 2.0, expected a whole number"),
        ({"num_inference_steps": True}, TypeError, "num_inference_steps is True"),
        ({"guidance_scale": float("nan")}, ValueError, "guidance_scale is nan, expected a finite number"),
        ({"guidance_scale": "3"}, TypeError, "guidance_scale is '3', expected a number"),
        ({"guidance_scale": True}, TypeError, "guidance_scale is True"),
        ({"arguments": [1]}, TypeError, "arguments is a list, expected a mapping"),
        ({"arguments": {1: 2}}, TypeError, "arguments has the name 1, expected a text"),
        ({"arguments": {"guidance_scale": 3}}, ValueError, r"pass Generation\(guidance_scale=...\)"),
        ({"arguments": {"generator": 1}}, ValueError, "'generator' is set by cad_fast: pass `seeds` or `seed`"),
        ({"arguments": {"num_images_per_prompt": 2}}, ValueError, "repeat the prompt instead"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields, error, message) -> None:
    with pytest.raises(error, match=message):
        Generation(**fields)


def test_numbers_of_numpy_are_numbers() -> None:
    generation = Generation(np.int64(4), np.float32(3))
    assert json.dumps(generation.to_dict()) == json.dumps(Generation(4, 3.0).to_dict())


def test_some_of_it_is_replaced() -> None:
    generation = Generation(20, 3.0, {"height": 8, "width": 8})
    assert Generation.of(generation, width=16, guidance_scale=None) == Generation(20, None, {"height": 8, "width": 16})
    with pytest.raises(TypeError, match="generation is a dict, expected a Generation or None"):
        Generation.of({"num_inference_steps": 20})  # type: ignore[arg-type]


def test_what_is_left_open_is_the_pipelines_own() -> None:
    assert Generation().resolved(Pipeline()) == Generation(30)
    assert Generation(4, 2.0, {"eta": 1.0}).resolved(Pipeline()) == Generation(4, 2.0, {"eta": 1.0})
    assert Generation().resolved(stable_diffusion()) == Generation(50, 7.5)
    schedule = Generation(arguments={"timesteps": [900, 100]}).resolved(stable_diffusion())
    assert schedule.num_inference_steps is None, "the schedule tells the number of steps"


def test_arguments_that_the_pipeline_does_not_take_are_named() -> None:
    with pytest.raises(ValueError, match="Pipeline takes no argument 'height'"):
        Generation(arguments={"height": 8}).resolved(Pipeline())
    with pytest.raises(ValueError, match="takes no argument 'guidance_scale'"):
        Generation(guidance_scale=2.0).resolved(Unguided())
    assert Generation().resolved(Unguided()) == Generation(2)
    anything = Generation(4, 2.0, {"height": 8})
    assert anything.resolved(lambda **arguments: None) == anything
    with pytest.raises(ValueError, match="FluxPipeline takes no argument 'heigth'"):
        cad_fast.record(flux(), "a cat", num_inference_steps=1, heigth=8, progress=False)


def test_the_arguments_of_a_call() -> None:
    generation = Generation(4, None, {"negative_prompt": "a house", "height": 8})
    assert generation.to_kwargs() == {"num_inference_steps": 4, "negative_prompt": "a house", "height": 8}
    assert generation.to_kwargs(2)["negative_prompt"] == ["a house"] * 2


def test_rows_are_told_from_what_they_share() -> None:
    latents = torch.zeros(2, 4)
    given = {
        "latents": latents,
        "negative_prompt": "a",
        "image_embeds": torch.zeros(3, 4),
        "eta": 1.0,
        "sigmas": [1, 0],
    }
    shared, rows = split_rows(Generation(4, arguments=given), 2)
    assert rows["negative_prompt"] == ["a", "a"] and rows["latents"] is latents and rows.keys() <= given.keys()
    assert shared.num_inference_steps == 4 and set(shared.arguments) == {"image_embeds", "eta", "sigmas"}


def test_json_and_back() -> None:
    generation = Generation(4, 3.0, {"height": 8, "timesteps": [3, 1]})
    saved = json.loads(json.dumps(generation.to_dict()))
    assert saved == {
        "num_inference_steps": 4,
        "guidance_scale": 3.0,
        "pipeline_kwargs": {"height": 8, "timesteps": [3, 1]},
    }
    assert Generation.from_dict({**saved, "prompts": ["a cat"]}) == generation
    assert Generation.from_dict({"num_inference_steps": 4, "guidance_scale": None}) == Generation(4)


def test_what_json_cannot_hold() -> None:
    generation = Generation(4, None, {"latents": torch.zeros(1), "eta": float("inf"), "height": 8})
    assert generation.storable() == Generation(4, None, {"height": 8})
    with pytest.raises(ValueError, match=r"the pipeline argument 'latents' .* must be a JSON value"):
        generation.to_dict()


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"num_inference_steps": "4"}, "num_inference_steps is '4', expected a whole number"),
        ({"guidance_scale": []}, r"guidance_scale is \[\], expected a number"),
        ({"pipeline_kwargs": None}, "pipeline_kwargs is None, expected an object"),
        ({"pipeline_kwargs": {"generator": 1}}, "'generator' is set by cad_fast"),
    ],
)
def test_damaged_json_is_refused(changed, message) -> None:
    with pytest.raises(ValueError, match=message):
        Generation.from_dict({**Generation(4, 3.0).to_dict(), **changed})
    with pytest.raises(ValueError, match="guidance_scale is missing"):
        Generation.from_dict({"num_inference_steps": 4})


def test_the_keywords_of_recording_are_those_of_a_generation() -> None:
    pipeline = stable_diffusion()
    generation = Generation(2, 4.0, {"negative_prompt": "a house", "eta": 0.5})
    recording = cad_fast.record(pipeline, ["a cat", "a dog"], progress=False, **generation.to_kwargs())
    assert recording.generation == Generation(2, 4.0, {"eta": 0.5})
    assert recording.row_kwargs == {"negative_prompt": ["a house"] * 2}
    again = cad_fast.renoise(recording, pipeline, timesteps=3)
    assert again.generation == Generation(3, 4.0, {"eta": 0.5}) and again.row_kwargs == recording.row_kwargs
    with pytest.raises(ValueError, match="num_inference_steps is 20: pass timesteps=20"):
        cad_fast.renoise(recording, pipeline, timesteps=3, num_inference_steps=20)
    other = cad_fast.with_base(recording, pipeline, "a bird", progress=False)
    assert other.generation == recording.generation
