"""The model for Triton's Python backend, with Triton's own module replaced by one that keeps what it is given."""

import io
import json
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cad_fast import zoo
from cad_fast.serving.engine.jobs import PictureJob, RequestedEdit
from cad_fast.serving.integrations import triton_backend
from cad_fast.serving.integrations.arguments import ServerArguments
from cad_fast.serving.integrations.tensors import INPUTS
from cad_fast.serving.integrations.triton_backend import MODEL_PY, TritonPythonModel, config_pbtxt, write_repository
from tests.serving.common import ROUNDING, Alone, distance, random_edit

ROOT = Path(__file__).resolve().parents[3]


class Tensor:
    def __init__(self, name, value):
        self._name, self._value = name, value

    def name(self):
        return self._name

    def as_numpy(self):
        return self._value


class TritonError(Exception):
    NOT_FOUND, UNAVAILABLE, CANCELLED, INVALID_ARG, INTERNAL = (
        "NOT_FOUND UNAVAILABLE CANCELLED INVALID_ARG INTERNAL".split()
    )

    def __init__(self, message, code=INTERNAL):
        super().__init__(message)
        self.code = code


class Sender:
    def __init__(self, cancelled):
        self.response, self._done, self._cancelled = None, threading.Event(), cancelled

    def send(self, response, flags):
        assert self.response is None and flags == 1
        self.response = response
        self._done.set()

    def is_cancelled(self):
        return self._cancelled

    def wait(self):
        assert self._done.wait(60)
        return self.response


class Request:
    def __init__(self, cancelled=False, **tensors):
        self._inputs = [Tensor(name, value) for name, value in tensors.items()]
        self.sender = Sender(cancelled)

    def inputs(self):
        return self._inputs

    def get_response_sender(self):
        return self.sender


@pytest.fixture
def utils(monkeypatch):
    module = types.ModuleType("triton_python_backend_utils")
    module.Tensor, module.TritonError = Tensor, TritonError
    module.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1

    def response(output_tensors=(), error=None):
        return types.SimpleNamespace(outputs={each.name(): each.as_numpy() for each in output_tensors}, error=error)

    module.InferenceResponse = response
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def configuration(**values) -> dict[str, str]:
    parameters = {name: {"string_value": str(value)} for name, value in values.items()}
    parameters["FORCE_CPU_ONLY_INPUT_TENSORS"] = {"string_value": "yes"}  # one of Triton's own
    return {"model_config": json.dumps({"parameters": parameters})}


def text(*values):
    return np.array([value.encode() for value in values], dtype=np.object_)


def test_requests_through_the_backend(utils, tmp_path) -> None:
    pipeline = zoo.load()
    pipeline.set_progress_bar_config(disable=True)
    edit = random_edit(pipeline, "first", 1, 0.02)
    edit.save_pretrained(tmp_path / "first")
    model = TritonPythonModel()
    model.initialize(configuration(model="zoo:emoji", edit_dir=tmp_path, warm_up=False, max_queue=4, max_n=2))
    try:
        own = {"prompt": text("a cat in noto style"), "seed": np.array([5]), "num_inference_steps": np.array([2])}
        edited, plain = Request(**own, edit_names=text("first")), Request(**own, output_format=text("pixels"))
        wrong = [
            Request(**own, edit_names=text("second")),
            Request(prompt=text("a" * 2000)),
            Request(**own, deadline=np.array([1e-3])),
            Request(cancelled=True, prompt=text("a cat"), num_inference_steps=np.array([100])),
        ]
        assert model.execute([edited, wrong[0]]) is None
        assert model.execute([plain, *wrong[1:]]) is None
        errors = [request.sender.wait().error for request in wrong]
        assert [error.code for error in errors] == ["NOT_FOUND", "INVALID_ARG", "CANCELLED", "CANCELLED"]
        assert str(errors[0]) == "there is no edit 'second'; there are: first" and str(errors[1]).startswith("prompt: ")
        arguments = {"num_inference_steps": 2, "guidance_scale": model._server.settings.guidance_scale}
        alone = Alone(pipeline)
        (file,) = edited.sender.wait().outputs["images"]
        job = PictureJob("", "a cat in noto style", seed=5, arguments=arguments, edits=(RequestedEdit(edit),))
        expected = alone.draw(job)
        assert distance(Image.open(io.BytesIO(file)), expected) <= 2 * ROUNDING
        expected = alone.draw(PictureJob("", "a cat in noto style", seed=5, arguments=arguments))
        assert distance(plain.sender.wait().outputs["pixels"][0], expected) <= 2 * ROUNDING
    finally:
        model.finalize()
    assert not model._server.alive and not model._thread.is_alive()


def test_wrong_parameters_are_named(utils) -> None:
    with pytest.raises(ValueError, match=r"edit_dri is no setting: the settings are model, "):
        TritonPythonModel().initialize(configuration(model="zoo:emoji", edit_dri="edits"))
    with pytest.raises(ValueError, match=r"max_n is 'many', expected a whole number of pictures, at least 1"):
        TritonPythonModel().initialize(configuration(model="zoo:emoji", max_n="many"))
    with pytest.raises(ValueError, match="model is missing: what is served"):
        TritonPythonModel().initialize(configuration())


def test_configuration() -> None:
    written = config_pbtxt("pictures", ServerArguments(model='a "b"', sizes=("32x32", "64x64"), max_n=2))
    assert written.startswith('name: "pictures"\nbackend: "python"\n')
    assert r'parameters { key: "model" value { string_value: "a \"b\"" } }' in written
    assert 'parameters { key: "sizes" value { string_value: "32x32,64x64" } }' in written
    assert 'parameters { key: "max_n" value { string_value: "2" } }' in written and "max_queue" not in written
    for spec in INPUTS:
        assert f'input {{ name: "{spec.name}" ' in written
    assert 'input { name: "prompt" data_type: TYPE_STRING dims: [1] }' in written
    assert 'input { name: "edit_strengths" data_type: TYPE_FP64 dims: [-1] optional: true }' in written
    assert 'output { name: "pixels" data_type: TYPE_UINT8 dims: [-1, -1, -1, 3] }' in written


def test_the_example_is_what_is_written(tmp_path) -> None:
    model = write_repository(tmp_path, ServerArguments(model="zoo:emoji"))
    kept = ROOT / "examples" / "triton" / "models" / "cad_fast"
    for name in ("config.pbtxt", "1/model.py"):
        assert (kept / name).read_text() == (model / name).read_text()
    assert (kept / "1" / "model.py").read_text() == MODEL_PY


def test_command(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["x", "models", "--model", "zoo:emoji", "--edit-dir", "edits", "--max-n", "2"])
    triton_backend.main()
    written = (tmp_path / "models" / "cad_fast" / "config.pbtxt").read_text()
    assert f'string_value: "{tmp_path}/edits"' in written and 'string_value: "2"' in written
    monkeypatch.setattr(sys, "argv", ["x", "models", "--model", "zoo:emoji", "--max-n", "many"])
    with pytest.raises(SystemExit):
        triton_backend.main()
    assert "--max-n is 'many', expected a whole number of pictures, at least 1" in capsys.readouterr().err
