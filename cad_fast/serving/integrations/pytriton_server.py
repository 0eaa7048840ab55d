"""Triton Inference Server, started from Python by pytriton."""

from __future__ import annotations

import contextlib
import os
import sysconfig
from collections.abc import Iterator
from typing import Any

import numpy as np

from ...extras import require
from ..errors import RequestError
from .tensors import INPUTS, KINDS, OUTPUTS, TensorModel, TensorSpec

EXTRA = "pytriton"


def bind(triton: Any, model: TensorModel, name: str = "cad_fast", concurrency: int | None = None) -> None:
    """Bind a model, whose server runs, to a ``pytriton.triton.Triton``.

    Args:
        triton: the ``Triton`` of pytriton.
        model: the model to bind.
        name: the model's name for clients.
        concurrency: requests that Triton hands over at a time, by default as many as fill a batch. Each takes a small
            process of pytriton's. More requests wait in Triton's own queue.

    Raises:
        ImportError: pytriton is missing. The error names the extra.
        ValueError: ``concurrency`` is below 1.
    """
    config = require("pytriton.model_config", EXTRA)
    if concurrency is None:
        concurrency = model.server.settings.max_batch_size
    if concurrency < 1:
        raise ValueError(f"concurrency is {concurrency}, expected at least 1")

    def tensor(spec: TensorSpec, optional: bool = False) -> Any:
        kind = bytes if spec.type == "BYTES" else KINDS[spec.type][1]
        return config.Tensor(name=spec.name, dtype=kind, shape=spec.shape, optional=optional)

    triton.bind(
        model_name=name,
        infer_func=[_answering(model)] * concurrency,
        inputs=[tensor(spec, spec.optional) for spec in INPUTS],
        outputs=[tensor(spec) for spec in OUTPUTS],
        config=config.ModelConfig(batching=False),
    )


def _answering(model: TensorModel) -> Any:
    refused = _refused()

    async def answer(requests: list[Any]) -> list[dict[str, np.ndarray]]:
        try:
            return [await model.answer(request.data) for request in requests]  # always one: Triton does not batch here
        except RequestError as error:
            message = f"{error} [{error.code}]"
        raise refused(message)

    return answer


def _refused() -> type[Exception]:
    refusal: Any = require("pytriton.exceptions", EXTRA).PyTritonInvalidOperationError

    class Refused(refusal):
        """A request that is refused, or that failed."""

        # pytriton sends clients the whole traceback of an error. This one has none.
        __traceback__ = property(lambda self: None)

    return Refused


@contextlib.contextmanager
def running(
    model: TensorModel,
    *,
    name: str = "cad_fast",
    concurrency: int | None = None,
    host: str = "127.0.0.1",
    http_port: int = 8000,
    grpc_port: int = 8001,
    metrics_port: int = 8002,
) -> Iterator[Any]:
    """Run Triton Inference Server with a model while the context lasts. Finish the accepted requests at its end.

    Args:
        model: the model, whose server is started and stopped here.
        name: the model's name for clients.
        concurrency: see ``bind``.
        host: address to listen at.
        http_port: port of HTTP.
        grpc_port: port of gRPC.
        metrics_port: port of Triton's own metrics.

    Yields:
        The ``pytriton.triton.Triton``.

    Raises:
        ImportError: pytriton is missing. The error names the extra.
    """
    triton = require("pytriton.triton", EXTRA)
    _find_libpython()
    config = triton.TritonConfig(
        http_address=host,
        grpc_address=host,
        metrics_address=host,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
    )
    with triton.Triton(config=config) as started:
        model.server.start()
        try:
            bind(started, model, name, concurrency)
            started.run()
            yield started
        finally:
            started.stop()
            model.server.stop()


def _find_libpython() -> None:
    """Let the processes that pytriton starts find this interpreter's library, wherever it is."""
    folder = sysconfig.get_config_var("LIBDIR")
    known = os.environ.get("LD_LIBRARY_PATH", "")
    if folder and folder not in known.split(":"):
        os.environ["LD_LIBRARY_PATH"] = f"{folder}:{known}" if known else folder
