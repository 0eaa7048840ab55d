"""Requests and pictures as the tensors of Triton Inference Server. They have the fields and limits of HTTP requests."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import ValidationError

from ...files import parse_json
from ..answering import Gone, answer_request, png_file
from ..errors import RequestError, invalid_field
from ..server import Server

log = logging.getLogger(__name__)

# Triton's name of a type -> numpy's kinds that are accepted for it, and the type of the tensors that we make.
KINDS = {"BYTES": ("OSU", np.object_), "INT64": ("iu", np.int64), "FP64": ("fiu", np.float64), "UINT8": ("u", np.uint8)}


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    Attributes:
        name: its name.
        type: Triton's name of its type.
        shape: -1 stands for any length.
        optional: whether a request may leave it out.
        field: whether it is a field of HTTP requests.
    """

    name: str
    type: Literal["BYTES", "INT64", "FP64", "UINT8"]
    shape: tuple[int, ...] = (1,)
    optional: bool = True
    field: bool = True


# float64, as JSON's numbers are: 7.3 is the same guidance here and over HTTP.
INPUTS = (
    TensorSpec("prompt", "BYTES", optional=False),
    TensorSpec("edits", "BYTES"),  # JSON, as in the body of an HTTP request; or
    TensorSpec("edit_names", "BYTES", (-1,), field=False),  # the names, and strengths that are 1 by default
    TensorSpec("edit_strengths", "FP64", (-1,), field=False),
    TensorSpec("n", "INT64"),
    TensorSpec("seed", "INT64"),
    TensorSpec("num_inference_steps", "INT64"),
    TensorSpec("guidance_scale", "FP64"),
    TensorSpec("true_cfg_scale", "FP64"),
    TensorSpec("negative_prompt", "BYTES"),
    TensorSpec("size", "BYTES"),
    TensorSpec("deadline", "FP64"),
    TensorSpec("user", "BYTES"),
    TensorSpec("output_format", "BYTES", field=False),
)
# An answer has `images` for the output_format "png", and `pixels` for "pixels".
OUTPUTS = (
    TensorSpec("images", "BYTES", (-1,)),  # PNG files
    TensorSpec("pixels", "UINT8", (-1, -1, -1, 3)),  # [n, height, width, 3]
    TensorSpec("seeds", "INT64", (-1,)),
)
FORMATS = ("png", "pixels")
_SPECS = {spec.name: spec for spec in INPUTS}


class TensorModel:
    """A server whose requests and answers are tensors. The caller starts and stops the server."""

    def __init__(self, server: Server) -> None:
        self.server = server

    async def answer(self, tensors: Mapping[str, np.ndarray], gone: Gone | None = None) -> dict[str, np.ndarray]:
        """Draw the pictures of a request.

        Args:
            tensors: the inputs, see ``INPUTS``.
            gone: makes a coroutine that ends when the client has gone. The request is then given up.

        Returns:
            The outputs, see ``OUTPUTS``.

        Raises:
            RequestError: the request is refused, or failed. Its ``param`` names the tensor at fault.
            ClientGone: the client has gone.
        """
        request_id = f"req-{secrets.token_hex(8)}"
        try:
            request, output_format = self._request(tensors)
        except RequestError:
            self.server.metrics.rejections.labels("invalid").inc()
            raise
        finish = _as_files if output_format == "png" else _as_pixels
        job, outputs = await answer_request(self.server, request, "triton", request_id, finish, gone)
        return {**outputs, "seeds": np.arange(job.seed, job.seed + job.n, dtype=np.int64)}

    def _request(self, tensors: Mapping[str, np.ndarray]) -> tuple[Any, str]:
        size = sum(_bytes_of(tensor) for tensor in tensors.values())
        if size > self.server.settings.body_bytes:
            message = f"the inputs have {size} bytes, more than {self.server.settings.body_bytes}"
            raise RequestError("body_too_large", message)
        fields = fields_of(tensors)
        output_format = fields.pop("output_format", "png")
        if output_format not in FORMATS:
            message = f"output_format: {output_format!r} is none of {', '.join(FORMATS)}"
            raise RequestError("invalid", message, param="output_format")
        try:
            return self.server.request_class.model_validate(fields), output_format
        except ValidationError as error:
            raise invalid_field(error.errors()[0]) from None


def fields_of(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Turn tensors into the fields of a JSON request, and ``output_format``.

    Raises:
        RequestError: a tensor does not fit. Its ``param`` names the tensor.
    """
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
    """Return the one value of a tensor, or the list of its values if it may have any length."""
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


def _misfit(name: str, message: str) -> RequestError:
    return RequestError("invalid", f"{name}: {message}", param=name)


def _bytes_of(tensor: np.ndarray) -> int:
    """Count the bytes of a tensor; of an array of objects those of the objects, not of their addresses."""
    if tensor.dtype.kind != "O":
        return tensor.nbytes
    return sum(len(each) if isinstance(each, (bytes, str)) else 8 for each in tensor.reshape(-1).tolist())


def _as_files(images: list[Image.Image]) -> dict[str, np.ndarray]:
    # One by one: numpy would cut zeros off the end of bytes that it packs itself.
    files = np.empty(len(images), dtype=np.object_)
    for i, image in enumerate(images):
        files[i] = png_file(image)
    return {"images": files}


def _as_pixels(images: list[Image.Image]) -> dict[str, np.ndarray]:
    return {"pixels": np.stack([np.asarray(image.convert("RGB")) for image in images])}
