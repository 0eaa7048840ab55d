"""Requests and pictures as tensors, as Triton Inference Server has them; behind them the schema and batcher of HTTP."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import ValidationError

from ...files import parse_json
from ..answering import draw
from ..errors import ApiError, misfit
from ..http.picture_store import png
from ..http.schema import image_request
from ..server import Server

log = logging.getLogger(__name__)

# Triton's name of a type -> how numpy calls the kinds of it that are taken, and what tensors of it are made of.
KINDS = {"BYTES": ("OSU", np.object_), "INT64": ("iu", np.int64), "FP64": ("fiu", np.float64), "UINT8": ("u", np.uint8)}


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: ``shape`` has -1 where the length is free; ``field``: of the schema, if it is one of its."""

    name: str
    type: Literal["BYTES", "INT64", "FP64", "UINT8"]
    shape: tuple[int, ...] = (1,)
    optional: bool = True
    field: bool = True


# float64, as JSON's numbers are: 7.3 is the same guidance here and over HTTP.
INPUTS = (
    TensorSpec("prompt", "BYTES", optional=False),
    TensorSpec("edits", "BYTES"),  # JSON, as in the body of an HTTP request
    TensorSpec("edit_names", "BYTES", (-1,), field=False),  # or names, and strengths where they are not 1
    TensorSpec("edit_strengths", "FP64", (-1,), field=False),
    TensorSpec("n", "INT64"),
    TensorSpec("seed", "INT64"),
    TensorSpec("num_inference_steps", "INT64"),
    TensorSpec("guidance_scale", "FP64"),
    TensorSpec("negative_prompt", "BYTES"),
    TensorSpec("size", "BYTES"),
    TensorSpec("deadline", "FP64"),
    TensorSpec("user", "BYTES"),
    TensorSpec("output_format", "BYTES", field=False),
)
# Of `images` and `pixels` an answer has the one that `output_format` is about.
OUTPUTS = (
    TensorSpec("images", "BYTES", (-1,)),  # PNG files
    TensorSpec("pixels", "UINT8", (-1, -1, -1, 3)),  # [n, height, width, 3]
    TensorSpec("seeds", "INT64", (-1,)),
)
FORMATS = ("png", "pixels")
_SPECS = {spec.name: spec for spec in INPUTS}


class TensorModel:
    """A server whose requests and answers are tensors; the caller starts and stops the server."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._schema = image_request(server.limits)

    async def answer(
        self, tensors: Mapping[str, np.ndarray], gone: Callable[[], Coroutine[Any, Any, None]] | None = None
    ) -> dict[str, np.ndarray]:
        """The outputs (see OUTPUTS) for the inputs (see INPUTS), waiting in the running event loop.

        ``gone``: as for ``draw``. Raises ApiError naming the tensor at fault as its ``param``, or ClientGone.
        """
        request_id = f"req-{secrets.token_hex(8)}"
        try:
            order, output_format = self._order(tensors)
        except ApiError:
            self.server.metrics.rejections.labels("invalid").inc()
            raise
        finish = _as_files if output_format == "png" else _as_pixels
        job, outputs = await draw(self.server, order, "triton", request_id, finish, gone)
        return {**outputs, "seeds": np.arange(job.seed, job.seed + job.n, dtype=np.int64)}

    def _order(self, tensors: Mapping[str, np.ndarray]) -> tuple[Any, str]:
        size = sum(_bytes_of(tensor) for tensor in tensors.values())
        if size > self.server.limits.body_bytes:
            message = f"the inputs have {size} bytes, more than {self.server.limits.body_bytes}"
            raise ApiError(413, message, code="body_too_large")
        fields = fields_of(tensors)
        output_format = fields.pop("output_format", "png")
        if output_format not in FORMATS:
            message = f"output_format: {output_format!r} is none of {', '.join(FORMATS)}"
            raise ApiError(400, message, code="invalid", param="output_format")
        try:
            return self._schema.model_validate(fields), output_format
        except ValidationError as error:
            raise misfit(error.errors()[0]) from None


def fields_of(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The tensors as the fields of a JSON request, and ``output_format``. Raises ApiError naming the tensor."""
    values = {name: _value(name, tensor) for name, tensor in tensors.items()}
    names, strengths = values.pop("edit_names", None), values.pop("edit_strengths", None)
    if names is None:
        if strengths is not None:
            raise _misfit("edit_strengths", "there are no edit_names that they could belong to")
    elif "edits" in values:
        raise _misfit("edit_names", "there are edits as well: give one of the two")
    elif strengths is not None and len(strengths) != len(names):
        raise _misfit("edit_strengths", f"there are {len(strengths)} of them and {len(names)} edit_names")
    if "edits" in values:
        try:
            values["edits"] = parse_json(values["edits"], "edits")
        except ValueError as error:
            raise _misfit("edits", f"{error}, expected a JSON list") from None
    elif names is not None:
        strengths = [1.0] * len(names) if strengths is None else strengths
        values["edits"] = [{"name": n, "strength": s} for n, s in zip(names, strengths, strict=True)]
    return values


def _value(name: str, tensor: np.ndarray) -> Any:
    """The one value of a tensor, or the list of them where its length is free."""
    spec = _SPECS.get(name)
    if spec is None:
        raise _misfit(name, f"there is no such input, there are {', '.join(_SPECS)}")
    tensor = np.asarray(tensor)
    if tensor.dtype.kind not in KINDS[spec.type][0]:
        raise _misfit(name, f"its type is {tensor.dtype}, expected {spec.type}")
    free = spec.shape == (-1,)
    if tensor.ndim != 1 or not (free or len(tensor) == 1):
        raise _misfit(name, f"its shape is {list(tensor.shape)}, expected {list(spec.shape)}")
    values = [_text(name, each) for each in tensor.tolist()] if spec.type == "BYTES" else tensor.tolist()
    return values if free else values[0]


def _text(name: str, value: Any) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise _misfit(name, "its bytes are not UTF-8") from None
    if not isinstance(value, str):
        raise _misfit(name, f"it holds a {type(value).__name__}, expected bytes")
    return value


def _misfit(name: str, message: str) -> ApiError:
    return ApiError(400, f"{name}: {message}", code="invalid", param=name)


def _bytes_of(tensor: np.ndarray) -> int:
    """How much a tensor holds; of an array of objects, what they hold, not their addresses."""
    if tensor.dtype.kind != "O":
        return tensor.nbytes
    return sum(len(each) if isinstance(each, (bytes, str)) else 8 for each in tensor.reshape(-1).tolist())


def _as_files(images: list[Image.Image]) -> dict[str, np.ndarray]:
    # One by one: numpy would cut the zeros off the end of bytes that it packs itself.
    files = np.empty(len(images), dtype=np.object_)
    for i, image in enumerate(images):
        files[i] = png(image)
    return {"images": files}


def _as_pixels(images: list[Image.Image]) -> dict[str, np.ndarray]:
    return {"pixels": np.stack([np.asarray(image.convert("RGB")) for image in images])}
