"""Requests as tensors: what becomes of them, with which words they are turned away, and the pictures that they get."""

import asyncio
import io

import numpy as np
import pytest
from PIL import Image

from cad_fast.serving.answering import ClientGone
from cad_fast.serving.engine.jobs import PictureJob, RequestedEdit
from cad_fast.serving.errors import RequestError
from cad_fast.serving.integrations.tensors import INPUTS, TensorModel, fields_of
from tests.pipelines import stable_diffusion
from tests.serving.common import ROUNDING, Alone, distance, make_server, random_edit, run


def text(*values: str | bytes) -> np.ndarray:
    return np.array([value if isinstance(value, bytes) else value.encode() for value in values], dtype=np.object_)


def served(**settings) -> TensorModel:
    pipeline = stable_diffusion()
    edits = [random_edit(pipeline, f"edit{i}", i) for i in range(3)]
    return TensorModel(make_server(pipeline, edits, max_n=2, **settings))


def answers(model: TensorModel, *requests, gone=None) -> list:
    """What each request, all at once, is answered or raises."""
    model.server.start()
    try:

        async def go():
            return await asyncio.gather(*(model.answer(each, gone) for each in requests), return_exceptions=True)

        return run(go())
    finally:
        model.server.stop()


def refusal(model: TensorModel, **tensors) -> RequestError:
    (error,) = answers(model, {"prompt": text("a cat"), **tensors})
    assert isinstance(error, RequestError), error
    return error


def test_fields() -> None:
    fields = fields_of(
        {
            "prompt": text("ein Kätzchen"),
            "edits": text('[{"name": "a", "strength": -0.5, "window": [900, 100]}]'),
            "n": np.array([2], dtype=np.int32),
            "seed": np.array([2**40]),
            "guidance_scale": np.array([7.3]),
            "output_format": text("pixels"),
        }
    )
    assert fields == {
        "prompt": "ein Kätzchen",
        "edits": [{"name": "a", "strength": -0.5, "window": [900, 100]}],
        "n": 2,
        "seed": 2**40,
        "guidance_scale": 7.3,
        "output_format": "pixels",
    }
    named = fields_of({"edit_names": text("a", "b"), "edit_strengths": np.array([1.0, 0.25])})
    assert named == {"edits": [{"name": "a", "strength": 1.0}, {"name": "b", "strength": 0.25}]}
    assert fields_of({"edit_names": text("a")}) == {"edits": [{"name": "a", "strength": 1.0}]}
    assert fields_of({"edit_names": text()}) == {"edits": []}
    # numpy's own strings, and the bytes it packs itself
    assert fields_of({"prompt": np.array(["a cat"]), "size": np.array([b"16x16"])}) == {
        "prompt": "a cat",
        "size": "16x16",
    }


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"promt": text("a")}, "promt: there is no such input, there are prompt, edits, edit_names"),
        ({"prompt": text("a", "b")}, r"prompt: its shape is \[2\], expected \[1\]"),
        ({"prompt": text("a").reshape(1, 1)}, r"prompt: its shape is \[1, 1\], expected \[1\]"),
        ({"prompt": np.array(1)}, "prompt: its type is int64, expected BYTES"),
        ({"prompt": np.array([None])}, "prompt: it holds a NoneType, expected bytes"),
        ({"prompt": text(b"\xff")}, "prompt: its bytes are not UTF-8"),
        ({"seed": np.array([1.5])}, "seed: its type is float64, expected INT64"),
        ({"seed": np.array([True])}, "seed: its type is bool, expected INT64"),
        ({"edits": text("[{")}, "edits: edits is not valid JSON"),
        ({"edits": text('[{"name": "a", "strength": NaN}]')}, "edits: edits is not valid JSON: NaN"),
        ({"edits": text("[" * 100_000)}, "edits: edits is not valid JSON"),
        ({"edits": text("[]"), "edit_names": text("a")}, "edit_names: there are edits as well"),
        ({"edit_strengths": np.array([1.0])}, "edit_strengths: there are no edit_names"),
        ({"edit_names": text("a"), "edit_strengths": np.array([1.0, 2.0])}, "there are 2 of them and 1 edit_names"),
    ],
)
def test_tensors_that_do_not_fit(tensors, message) -> None:
    with pytest.raises(RequestError, match=message) as error:
        fields_of(tensors)
    assert error.value.code == "invalid" and error.value.param == next(reversed(tensors))


def test_limits_are_those_of_http() -> None:
    model = served(max_steps=5, max_strength=2.0, body_bytes=2000, sizes=("16x16",))
    cases = {
        "num_inference_steps": np.array([6]),
        "n": np.array([3]),
        "size": text("8x8"),
        "guidance_scale": np.array([np.inf]),
        "deadline": np.array([-1.0]),
        "seed": np.array([-1]),
        "output_format": text("gif"),
    }
    for name, value in cases.items():
        error = refusal(
            model := served(max_steps=5, max_strength=2.0, body_bytes=2000, sizes=("16x16",)), **{name: value}
        )
        assert (error.code, error.param) == ("invalid", name), error
    assert 'rejections_total{reason="invalid"} 1.0' in model.server.metrics.text().decode()
    for edits, param in (('[{"name": "edit0", "strength": 9}]', "edits[0].strength"), ("{}", "edits"), ("7", "edits")):
        assert refusal(served(max_strength=2.0), edits=text(edits)).param == param
    missing = refusal(served(), edit_names=text("edit0", "../edit1"))
    assert missing.code == "invalid" and missing.param == "edits[1].name"
    unknown = refusal(served(), edit_names=text("nobody"))
    assert unknown.code == "edit_not_found" and "there are: edit0, edit1, edit2" in str(unknown)
    large = refusal(served(body_bytes=2000), negative_prompt=text("a" * 2000))
    assert large.code == "body_too_large" and "more than 2000" in str(large)
    (absent,) = answers(served(), {"seed": np.array([1])})
    assert absent.param == "prompt"


def test_pictures_are_what_the_pipeline_draws_alone() -> None:
    model, alone = served(max_batch_size=4), Alone(stable_diffusion())
    requests, jobs = [], []
    for i in range(6):
        steps, strength = 1 + i % 3, (1.0, 0.5, -1.0)[i % 3]
        tensors = {
            "prompt": text("a cat"),
            "seed": np.array([i]),
            "n": np.array([1 + i % 2]),
            "num_inference_steps": np.array([steps]),
            "guidance_scale": np.array([7.3]),
            "output_format": text("pixels" if i < 3 else "png"),
        }
        if i % 2:
            tensors |= {"edit_names": text(f"edit{i % 3}"), "edit_strengths": np.array([strength])}
        else:
            tensors["edits"] = text(f'[{{"name": "edit{i % 3}", "strength": {strength}, "window": [1000, 200]}}]')
        requests.append(tensors)
        window = None if i % 2 else (200, 1000)
        use = RequestedEdit(model.server.library.get(f"edit{i % 3}"), strength, window)
        arguments = {"num_inference_steps": steps, "guidance_scale": 7.3}
        jobs.append(PictureJob("", "a cat", seed=i, n=1 + i % 2, arguments=arguments, edits=(use,)))
    plain = alone.draw(PictureJob("", "a cat", arguments={"num_inference_steps": 2, "guidance_scale": 7.3}))
    for i, (job, answer) in enumerate(zip(jobs, answers(model, *requests), strict=True)):
        assert not isinstance(answer, BaseException), answer
        assert list(answer) == ["pixels" if i < 3 else "images", "seeds"]
        assert answer["seeds"].tolist() == [i + k for k in range(job.n)]
        if i < 3:
            pictures = answer["pixels"]
            assert pictures.dtype == np.uint8 and pictures.shape[0] == job.n
        else:
            pictures = [Image.open(io.BytesIO(file)) for file in answer["images"]]
        assert len(pictures) == job.n
        for k, picture in enumerate(pictures):
            assert distance(picture, alone.draw(job, k)) <= ROUNDING
            assert distance(picture, plain) > 10 * ROUNDING, "the edits and seeds show"


def test_a_client_that_goes_frees_its_place() -> None:
    async def gone() -> None:
        await asyncio.sleep(0.01)

    model = served(max_steps=100)
    (error,) = answers(model, {"prompt": text("a cat"), "num_inference_steps": np.array([100])}, gone=gone)
    assert isinstance(error, ClientGone)
    assert model.server.batcher.load == (0, 0)
    assert 'requests_total{outcome="disconnected"} 1.0' in model.server.metrics.text().decode()


def test_a_deadline() -> None:
    tensors = {"prompt": text("a cat"), "num_inference_steps": np.array([100]), "deadline": np.array([0.01])}
    (error,) = answers(served(), tensors)
    assert error.code == "deadline_exceeded"


def test_every_input_is_a_field_of_the_schema_or_our_own() -> None:
    known = make_server(stable_diffusion()).request_class.model_fields
    for spec in INPUTS:
        assert (spec.name in known) == (spec.field or spec.name == "output_format"), spec.name
