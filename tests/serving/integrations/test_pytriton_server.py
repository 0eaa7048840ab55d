"""What pytriton is told and answered, with its modules replaced; the real one is in test_triton_servers.py."""

import asyncio
import sys
import traceback
import types

import numpy as np
import pytest

from cad_fast.serving.integrations.pytriton_server import bind, running
from cad_fast.serving.integrations.tensors import INPUTS, TensorModel
from tests.pipelines import stable_diffusion
from tests.serving.common import make_server


class InvalidOperation(Exception):
    pass


@pytest.fixture
def model(monkeypatch) -> TensorModel:
    """A model, with pytriton's modules replaced."""
    exceptions, config = types.ModuleType("pytriton.exceptions"), types.ModuleType("pytriton.model_config")
    exceptions.PyTritonInvalidOperationError = InvalidOperation
    config.Tensor = config.ModelConfig = lambda **values: types.SimpleNamespace(**values)
    for module in (types.ModuleType("pytriton"), exceptions, config):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return TensorModel(make_server(stable_diffusion(), max_batch_size=3))


def test_bind(model) -> None:
    with pytest.raises(ValueError, match="concurrency is 0, expected at least 1"):
        bind(None, model, concurrency=0)
    given: dict = {}
    bind(types.SimpleNamespace(bind=lambda **values: given.update(values)), model, "x")
    assert given["model_name"] == "x" and len(given["infer_func"]) == 3 and given["config"].batching is False
    assert [each.name for each in given["inputs"] if not each.optional] == ["prompt"]
    assert [each.name for each in given["inputs"]] == [spec.name for spec in INPUTS]
    answer = given["infer_func"][0]
    with pytest.raises(InvalidOperation, match=r"promt: there is no such input.*\[invalid\]") as error:
        asyncio.run(answer([types.SimpleNamespace(data={"promt": np.array([b"a"])})]))
    # As pytriton formats what it sends to the client.
    sent = "".join(traceback.format_exception(None, error.value, error.value.__traceback__))
    assert "promt" in sent and 'File "' not in sent


def test_without_pytriton_the_extra_is_named(monkeypatch) -> None:
    model = TensorModel(make_server(stable_diffusion()))
    monkeypatch.setattr("cad_fast.extras.importlib.import_module", missing)
    with pytest.raises(ImportError, match=r"pip install 'cad-fast\[pytriton\]'"), running(model):
        pass
    with pytest.raises(ImportError, match=r"pip install 'cad-fast\[pytriton\]'"):
        bind(None, model)


def missing(name: str) -> None:
    raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])
