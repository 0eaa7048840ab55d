"""The bodies of responses: OpenAI's images and models, edits, and errors."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class ImageData(BaseModel):
    """One picture: a PNG in base64, or its URL."""

    b64_json: str | None = None
    url: str | None = None
    seed: int


class ImageResponse(BaseModel):
    """OpenAI's images response. The ``seed`` beside each picture draws it again."""

    created: int
    data: list[ImageData]
    output_format: Literal["png"] = "png"
    size: str


class Model(BaseModel):
    """One entry of the list of models."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "cad_fast"


class ModelList(BaseModel):
    """OpenAI's list of models."""

    object: Literal["list"] = "list"
    data: list[Model]


class EditEntry(BaseModel):
    """An edit that requests may name. The fields after ``loaded`` are there while it is loaded."""

    id: str
    object: Literal["edit"] = "edit"
    loaded: bool
    concept: str | None = None
    effect: Literal["erase", "amplify"] | None = None
    kind: str | None = None
    components: int | None = None
    weights: int | None = None
    modules: int | None = None
    factor: float | None = None
    digest: str | None = None


class EditList(BaseModel):
    """All edits that requests may name."""

    object: Literal["list"] = "list"
    data: list[EditEntry]


class ErrorDetail(BaseModel):
    """OpenAI's error. ``param`` names the field at fault."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """The body of every error response."""

    error: ErrorDetail
