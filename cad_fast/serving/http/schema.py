"""Requests and responses: OpenAI's image generation, with edits and sampling beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

EDIT_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


@dataclass(frozen=True)
class Limits:
    """What a request may ask for. ``sizes``: "WIDTHxHEIGHT", the first is the default; ``steps``: default."""

    sizes: tuple[str, ...]
    steps: int = 20
    guidance_scale: float = 3.0
    max_steps: int = 100
    max_guidance_scale: float = 30.0
    max_n: int = 8
    max_prompt: int = 1000
    max_edits: int = 8
    max_strength: float = 4.0
    max_seed: int = 2**53 - 1  # the largest integer that every JSON reader keeps
    max_timestep: float = 1000.0
    deadline: float = 120.0
    body_bytes: int = field(default=64 * 1024)
    picture_urls: bool = True


class Strict(BaseModel):
    """A model that names fields it does not know, and knows neither NaN nor infinity."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def image_request(limits: Limits) -> type[BaseModel]:
    """The class of a request's body under these limits, which so appear in the OpenAPI document."""
    timestep = Annotated[float, Field(ge=0, le=limits.max_timestep)]
    edit_use = create_model(
        "EditUse",
        __base__=Strict,
        name=(Annotated[str, Field(pattern=EDIT_NAME, description="an edit of GET /v1/edits")], ...),
        strength=(
            Annotated[float, Field(ge=-limits.max_strength, le=limits.max_strength)],
            Field(1.0, description="0 off, 1 the edit as made, beyond 1 more, negative the opposite"),
        ),
        window=(
            tuple[timestep, timestep] | None,
            Field(None, description="[highest, lowest] timestep at which the edit holds; all by default"),
        ),
    )
    formats = ("b64_json", "url") if limits.picture_urls else ("b64_json",)
    bounded: dict[str, Any] = {
        "prompt": (Annotated[str, Field(min_length=1, max_length=limits.max_prompt)], ...),
        "model": (str | None, None),
        "n": (Annotated[int, Field(ge=1, le=limits.max_n)] | None, 1),
        "size": (Literal[("auto", *limits.sizes)] | None, "auto"),
        "response_format": (Literal[formats] | None, "b64_json"),
        "user": (Annotated[str, Field(max_length=256)] | None, None),
        # OpenAI's further fields, as far as there is nothing to choose.
        "output_format": (Literal["png"] | None, None),
        "quality": (Literal["auto", "standard"] | None, None),
        "background": (Literal["auto", "opaque"] | None, None),
        "moderation": (Literal["auto"] | None, None),
        "stream": (Literal[False] | None, None),
        # Ours.
        "edits": (Annotated[list[edit_use], Field(max_length=limits.max_edits)], Field(default_factory=list)),
        "seed": (
            Annotated[int, Field(ge=0, le=limits.max_seed - limits.max_n)] | None,
            Field(None, description="of the first picture, the others count on; drawn at random if absent"),
        ),
        "num_inference_steps": (Annotated[int, Field(ge=1, le=limits.max_steps)] | None, None),
        "guidance_scale": (Annotated[float, Field(ge=0, le=limits.max_guidance_scale)] | None, None),
        "negative_prompt": (Annotated[str, Field(max_length=limits.max_prompt)] | None, None),
        "deadline": (
            Annotated[float, Field(gt=0, le=limits.deadline)] | None,
            Field(None, description="seconds after which nobody waits any more"),
        ),
    }
    return create_model("ImageRequest", __base__=Strict, **bounded)


class ImageData(BaseModel):
    """One picture: as base64 of a PNG, or where to fetch it."""

    b64_json: str | None = None
    url: str | None = None
    seed: int


class ImageResponse(BaseModel):
    """OpenAI's images response; ``seed`` beside each picture draws it again."""

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
    """An edit that requests may name; what it is, as far as it is loaded."""

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
    """OpenAI's error: ``param`` names the field at fault."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """The body of every response that is no success."""

    error: ErrorDetail
