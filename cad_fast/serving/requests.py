"""The fields of a request: those of OpenAI's image generation, with edits and sampling beside them.

HTTP bodies and Triton's tensors have the same fields and the same limits.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model
from pydantic_core import PydanticCustomError

from .settings import Number, Settings, Whole

EDIT_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
MAX_TIMESTEP = 1000.0
MAX_SEED = 2**53 - 1  # the largest integer that every reader of JSON keeps


# Further fields of OpenAI's, which leave nothing to choose here: what each may be, and why nothing else.
FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "output_format": (("png",), "pictures are PNG files"),
    "output_compression": ((100,), "PNG files lose nothing: leave it out, or give 100"),
    "quality": (("auto", "standard"), "there is one quality: leave it out, or give auto or standard"),
    "style": ((), "there are no styles to choose from: say it in the prompt"),
    "background": (("auto", "opaque"), "pictures have no transparency: leave it out, or give auto or opaque"),
    "moderation": (("auto",), "nothing is moderated: leave it out, or give auto"),
    "stream": ((False,), "pictures are sent when they are whole: leave it out, or give false"),
    "partial_images": ((0,), "pictures are sent when they are whole: leave it out, or give 0"),
}


def _fixed(name: str) -> Any:
    """The type of a field of ``FIXED``, whose errors are the sentence there."""
    allowed, reason = FIXED[name]

    def check(value: Any) -> Any:
        if value is None or any(value == each and type(value) is type(each) for each in allowed):
            return value
        raise PydanticCustomError("fixed", "{reason}", {"reason": reason})

    choices = (*allowed, None)
    kinds: Any = Literal[choices] if allowed else None
    return Annotated[kinds, BeforeValidator(check)]


class Strict(BaseModel):
    """A model that refuses fields it does not know, NaN and infinity."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def request_class(settings: Settings) -> type[BaseModel]:
    """Make the class of requests under the limits of a server, which so appear in its OpenAPI document.

    Args:
        settings: the completed settings of the server.
    """
    assert settings.max_n is not None and settings.sizes is not None, "the settings are not completed"
    edit_use = _edit_use(settings)
    formats = ("b64_json", "url") if settings.picture_urls else ("b64_json",)
    sizes = ("auto", *settings.sizes)
    text = Annotated[str, Field(max_length=settings.max_prompt)]
    edits = Annotated[
        list[edit_use],  # type: ignore[valid-type]  # a model made just now
        Field(max_length=settings.max_edits),
    ]
    fields: dict[str, Any] = {
        "prompt": (Annotated[text, Field(min_length=1)], ...),
        "model": (str | None, None),
        "n": (Annotated[Whole, Field(ge=1, le=settings.max_n)] | None, 1),
        "size": (Literal[sizes] | None, "auto"),
        "response_format": (Literal[formats] | None, "b64_json"),
        "user": (Annotated[str, Field(max_length=256)] | None, None),
        **{name: (_fixed(name), None) for name in FIXED},
        # Fields of ours.
        "edits": (edits | None, Field(None, description="the edits of all pictures of the request; none by default")),
        "seed": (
            Annotated[Whole, Field(ge=0, le=MAX_SEED - settings.max_n)] | None,
            Field(None, description="seed of the first picture; the next ones count up; random by default"),
        ),
        "num_inference_steps": (Annotated[Whole, Field(ge=1, le=settings.max_steps)] | None, None),
        "guidance_scale": (Annotated[Number, Field(ge=0, le=settings.max_guidance_scale)] | None, None),
        "true_cfg_scale": (
            Annotated[Number, Field(ge=0, le=settings.max_guidance_scale)] | None,
            Field(None, description="guidance by a negative prompt, where guidance_scale is an input of the model"),
        ),
        "negative_prompt": (text | None, None),
        "deadline": (
            Annotated[Number, Field(gt=0, le=settings.deadline)] | None,
            Field(None, description="seconds after which the request is ended"),
        ),
    }
    return create_model("ImageRequest", __base__=Strict, **fields)


def _edit_use(settings: Settings) -> type[BaseModel]:
    timestep = Annotated[Number, Field(ge=0, le=MAX_TIMESTEP)]
    strength = Annotated[Number, Field(ge=-settings.max_strength, le=settings.max_strength)]
    name: Any = Annotated[str, Field(pattern=EDIT_NAME, description="an edit of GET /v1/edits")]
    return create_model(
        "EditUse",
        __base__=Strict,
        name=(name, ...),
        strength=(
            strength,
            Field(1.0, description="0 is off, 1 is the edit as made, negative is the opposite"),
        ),
        window=(
            tuple[timestep, timestep] | None,
            Field(
                None,
                description="the highest and the lowest timestep at which the edit acts, in either order, both "
                "included; all timesteps by default",
            ),
        ),
    )
