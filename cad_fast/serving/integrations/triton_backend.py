"""A model for the Python backend of Triton Inference Server, imported by the model.py of a model repository.

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
from ..errors import ErrorCode, RequestError
from ..settings import SettingInfo, SettingsError
from .arguments import ServerArguments
from .tensors import INPUTS, OUTPUTS, TensorModel, TensorSpec

# Seconds between two looks at whether the client of a request has gone.
CANCEL_SECONDS = 0.1
# Triton's codes of errors; all others are INVALID_ARG.
CODES: dict[ErrorCode, str] = {
    "not_found": "NOT_FOUND",
    "model_not_found": "NOT_FOUND",
    "edit_not_found": "NOT_FOUND",
    "edit_not_loaded": "NOT_FOUND",
    "queue_full": "UNAVAILABLE",
    "shutting_down": "UNAVAILABLE",
    "deadline_exceeded": "CANCELLED",
    "not_finite": "INTERNAL",
    "failed": "INTERNAL",
}
MODEL_PY = '''"""The model of cad_fast for Triton's Python backend; its arguments are in config.pbtxt."""

from cad_fast.serving.integrations.triton_backend import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


class TritonPythonModel:
    """The class that Triton's Python backend looks for. One batcher draws all requests.

    ``execute`` answers through response senders, which need Triton 24.06 for models that are not decoupled.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model and its edits as the parameters of the configuration say. Start the batcher."""
        import triton_python_backend_utils as pb_utils

        self._utils = pb_utils
        parameters = json.loads(args["model_config"]).get("parameters", {})
        # The backend's own parameters are in capitals.
        values = {name: each["string_value"] for name, each in parameters.items() if not name.isupper()}
        self._server = ServerArguments(**values).load()
        self._model = TensorModel(self._server)
        self._server.start()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cad-fast-answers", daemon=True)
        self._thread.start()

    def execute(self, requests: list[Any]) -> None:
        """Take requests. Each is answered when its own pictures are done."""
        for request in requests:
            tensors = {each.name(): each.as_numpy().copy() for each in request.inputs()}
            asyncio.run_coroutine_threadsafe(self._answer(tensors, request.get_response_sender()), self._loop)

    def finalize(self) -> None:
        """Finish the accepted requests, and stop."""
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
        except RequestError as error:
            response = utils.InferenceResponse(error=utils.TritonError(str(error), self._code(error)))
        except Exception as error:
            utils.Logger.log_error(f"a request failed: {error!r}")
            response = utils.InferenceResponse(error=utils.TritonError("the request failed; the log tells why"))
        sender.send(response, flags=utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _code(self, error: RequestError) -> Any:
        return getattr(self._utils.TritonError, CODES.get(error.code, "INVALID_ARG"))


def config_pbtxt(name: str, arguments: Any) -> str:
    """Write the configuration of a model: its inputs and outputs, and the arguments that are not the defaults."""
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
    """Write a model repository of one model for ``tritonserver --model-repository``. Return the model's folder."""
    model = Path(folder) / name
    write_text(model / "1" / "model.py", MODEL_PY)
    write_text(model / "config.pbtxt", config_pbtxt(name, arguments))  # last: a folder without it is no model
    return model


def main() -> None:
    """Write a model repository. The options are the arguments of ``ServerArguments``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--name", default="cad_fast", help="of the model, for clients")
    for field in ServerArguments.model_fields:
        info = SettingInfo.of(ServerArguments, field)
        text = f"{info.description}; {info.kind}" + (f" (default: {info.default})" if info.default else "")
        parser.add_argument(
            _option(field), required=info.required, default=argparse.SUPPRESS, metavar=field.upper(), help=text
        )
    given = vars(parser.parse_args())
    folder, name = given.pop("folder"), given.pop("name")
    try:
        print(write_repository(folder, ServerArguments(**given).with_whole_paths(), name))
    except SettingsError as error:
        parser.error(str(error.spelled(_option)))


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


if __name__ == "__main__":
    main()
