"""A model for the Python backend of Triton Inference Server: the model.py of its repository imports it from here.

To write the model repository:
``python -m cad_fast.serving.integrations.triton_backend DIR --model zoo:emoji --edit-dir edits``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
from pathlib import Path
from typing import Any

from ...files import write_text
from ..answering import ClientGone
from ..errors import ApiError
from .arguments import ServerArguments
from .tensors import INPUTS, OUTPUTS, TensorModel, TensorSpec

# How often a request that is being drawn is looked at for having been given up.
CANCEL_SECONDS = 0.1
MODEL_PY = '''"""The model of cad_fast for Triton's Python backend; its arguments are in config.pbtxt."""

from cad_fast.serving.integrations.triton_backend import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


class TritonPythonModel:
    """The class that Triton's Python backend looks for. All requests are drawn by one batcher, each answered when done.

    ``execute`` answers through response senders, for which models that are not decoupled need Triton 24.06.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model and its edits, as the parameters in the configuration say."""
        import triton_python_backend_utils as pb_utils

        self._utils = pb_utils
        parameters = json.loads(args["model_config"]).get("parameters", {})
        # The backend's own parameters, which stand beside ours, are in capitals.
        values = {name: each["string_value"] for name, each in parameters.items() if not name.isupper()}
        self._server = ServerArguments.of(values).load()
        self._model = TensorModel(self._server)
        self._server.start()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cad-fast-answers", daemon=True)
        self._thread.start()

    def execute(self, requests: list[Any]) -> None:
        """Take requests; each is answered when its pictures are done, whatever came before it."""
        for request in requests:
            tensors = {each.name(): each.as_numpy().copy() for each in request.inputs()}
            asyncio.run_coroutine_threadsafe(self._answer(tensors, request.get_response_sender()), self._loop)

    def finalize(self) -> None:
        """Finish what was accepted."""
        self._server.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _answer(self, tensors: dict[str, Any], sender: Any) -> None:
        utils = self._utils

        async def gone() -> None:
            while not sender.is_cancelled():
                await asyncio.sleep(CANCEL_SECONDS)

        try:
            outputs = await self._model.answer(tensors, gone)
            response = utils.InferenceResponse([utils.Tensor(name, value) for name, value in outputs.items()])
        except ClientGone:
            response = utils.InferenceResponse(error=utils.TritonError("given up", utils.TritonError.CANCELLED))
        except ApiError as error:
            response = utils.InferenceResponse(error=utils.TritonError(str(error), self._code(error)))
        except Exception as error:
            utils.Logger.log_error(f"a request failed: {error!r}")
            response = utils.InferenceResponse(error=utils.TritonError("the request failed; the log tells why"))
        sender.send(response, flags=utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _code(self, error: ApiError) -> Any:
        kinds = self._utils.TritonError
        codes = {404: kinds.NOT_FOUND, 429: kinds.UNAVAILABLE, 503: kinds.UNAVAILABLE, 504: kinds.CANCELLED}
        return codes.get(error.status, kinds.INVALID_ARG if error.status < 500 else kinds.INTERNAL)


def config_pbtxt(name: str, arguments: Any) -> str:
    """The configuration of a model repository: inputs, outputs, and the arguments that are not the defaults."""
    given = arguments.model_dump(exclude_defaults=True, exclude_none=True)
    parameters = "".join(
        f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(_text(value))} }} }}\n"
        for key, value in given.items()
    )
    return (
        f"name: {_quoted(name)}\n"
        'backend: "python"\n'
        "# Batches are made of the requests' steps, whatever Triton hands over together.\n"
        "max_batch_size: 0\n"
        f"{''.join(_tensor('input', spec) for spec in INPUTS)}"
        f"{''.join(_tensor('output', spec) for spec in OUTPUTS)}"
        "# One process: it has the model once, and one batch for all requests.\n"
        "instance_group [ { kind: KIND_CPU count: 1 } ]\n"
        f"{parameters}"
    )


def _tensor(section: str, spec: TensorSpec) -> str:
    kind = {"BYTES": "STRING"}.get(spec.type, spec.type)
    optional = " optional: true" if section == "input" and spec.optional else ""
    return f"{section} {{ name: {_quoted(spec.name)} data_type: TYPE_{kind} dims: {list(spec.shape)}{optional} }}\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _text(value: Any) -> str:
    return ",".join(value) if isinstance(value, (list, tuple)) else str(value)


def write_repository(folder: str | Path, arguments: Any, name: str = "cad_fast") -> Path:
    """Write a model repository of one model for ``tritonserver --model-repository``; returns the model's folder."""
    model = Path(folder) / name
    write_text(model / "1" / "model.py", MODEL_PY)
    write_text(model / "config.pbtxt", config_pbtxt(name, arguments))  # last: a folder without it is no model
    return model


def main() -> None:
    """Write a model repository, its arguments those of ``ServerArguments``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--name", default="cad_fast", help="of the model, for clients")
    for field in ServerArguments.model_fields:
        parser.add_argument(f"--{field.replace('_', '-')}", required=field == "model", default=argparse.SUPPRESS)
    given = vars(parser.parse_args())
    folder, name = given.pop("folder"), given.pop("name")
    try:
        print(write_repository(folder, ServerArguments.of(given).with_whole_paths(), name))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
