"""The settings of a server: one model, from which the command line, Ray, Triton and the documentation take theirs."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from .. import envs

MAX_SIDE = 8192  # pixels
# The settings that bound requests, or are their defaults; GET /v1/limits tells them to clients.
LIMITS = (
    "sizes",
    "steps",
    "guidance_scale",
    "max_steps",
    "max_guidance_scale",
    "max_n",
    "max_prompt",
    "max_edits",
    "max_strength",
    "deadline",
    "body_bytes",
    "picture_urls",
)


class Fault(NamedTuple):
    """What is wrong with one setting: ``text`` follows its name; ``other`` is a setting that the text speaks of."""

    setting: str
    text: str
    other: str | None = None


class SettingsError(ValueError):
    """Settings that do not fit.

    Args:
        faults: what is wrong.
        spell: gives the name of a setting as the caller wrote it.
    """

    def __init__(self, faults: Iterable[Fault], spell: Callable[[str], str] = str) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(_sentence(fault, spell) for fault in self.faults))

    def spelled(self, spell: Callable[[str], str]) -> SettingsError:
        """Say the same with other names of the settings."""
        return SettingsError(self.faults, spell)


def _sentence(fault: Fault, spell: Callable[[str], str]) -> str:
    text = f"{spell(fault.setting)} {fault.text}"
    return text if fault.other is None else f"{text} ({spell(fault.other)})"


def refuse_booleans(value: Any) -> Any:
    """Raise an error of pydantic for a boolean, which pydantic would take as the number 0 or 1."""
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "Input should be a number, not true or false")
    return value


def _words(value: Any) -> Any:
    """Split ``"a, b"``: Ray's command line and Triton's parameters have no lists."""
    return [word.strip() for word in value.split(",")] if isinstance(value, str) else value


def _is_size(text: str) -> str:
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdecimal() and 0 < int(side) <= MAX_SIDE for side in sides):
        raise ValueError("not a size")
    return text


Whole = Annotated[int, BeforeValidator(refuse_booleans)]
Number = Annotated[float, BeforeValidator(refuse_booleans)]
Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
Sizes = Annotated[tuple[Annotated[str, AfterValidator(_is_size)], ...], BeforeValidator(_words), Field(min_length=1)]


def setting(
    default: Any,
    description: str,
    *,
    unit: str | None = None,
    form: str | None = None,
    default_text: str | None = None,
    **bounds: Any,
) -> Any:
    """Declare a setting.

    Args:
        default: its default; ``...`` if it must be given.
        description: what it does, as a phrase.
        unit: the unit of a number.
        form: what a text must look like.
        default_text: says what a default of None stands for.
        bounds: ``ge``, ``gt``, ``le`` or ``lt``.
    """
    extra: dict[str, Any] = {"unit": unit, "form": form, "default_text": default_text}
    return Field(default, description=description, json_schema_extra=extra, **bounds)


class Checked(BaseModel):
    """A frozen model whose errors name each setting that does not fit, in words of ours."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True, protected_namespaces=())

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(_fault(type(self), each) for each in error.errors()) from None
        faults = self.cross_faults()
        if faults:
            raise SettingsError(faults)

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Any:
        """Check settings that come as a mapping.

        Raises:
            SettingsError: they do not fit.
        """
        if isinstance(obj, cls):
            return obj
        if not isinstance(obj, Mapping):
            raise ValueError(f"the settings are a {type(obj).__name__}, expected names and values")
        return cls(**obj)

    def cross_faults(self) -> list[Fault]:
        """Return what is wrong with settings that must fit each other."""
        return []


class Settings(Checked):
    """How a server behaves.

    Raises:
        SettingsError: a setting is unknown or out of range, or two do not fit each other.
    """

    model: str = setting(
        "model",
        "what is served: zoo:emoji, zoo:emoji-flow, a local diffusers folder, or a repository of the Hub; clients see "
        "it as the model's name, of a local folder only the last part",
    )
    max_batch_size: Whole = setting(
        8, "most pictures in the batch; a guided picture takes two rows of a pass", unit="pictures", ge=1
    )
    batch_timeout: Number = setting(
        0.005, "how long the first picture of an idle server waits for more requests to batch", unit="seconds", ge=0
    )
    max_queue: Whole = setting(64, "most pictures that may wait; further requests are refused", unit="pictures", ge=1)
    deadline: Number = setting(
        120.0, "longest time for a request, waiting included; then it is ended", unit="seconds", gt=0
    )
    drain: Number = setting(30.0, "longest time to finish accepted requests at shutdown", unit="seconds", ge=0)
    sizes: Sizes | None = setting(
        None,
        "the sizes that requests may choose; the first is the default",
        form=f"WIDTHxHEIGHT in pixels, each up to {MAX_SIDE}, such as 512x512",
        default_text="the model's own size",
    )
    steps: Whole | None = setting(
        None, "denoising steps of a request that names none", unit="steps", default_text="the pipeline's own", ge=1
    )
    guidance_scale: Number | None = setting(
        None, "guidance scale of a request that names none", default_text="the pipeline's own", ge=0
    )
    max_steps: Whole = setting(100, "most denoising steps of a request", unit="steps", ge=1)
    max_guidance_scale: Number = setting(30.0, "highest guidance scale, also true CFG scale, of a request", ge=0)
    max_n: Whole | None = setting(
        None, "most pictures of a request", unit="pictures", default_text="8, or `max_queue` if that is less", ge=1
    )
    max_prompt: Whole = setting(1000, "longest prompt, also negative prompt", unit="characters", ge=1)
    max_edits: Whole = setting(8, "most edits of a request", unit="edits", ge=0)
    max_strength: Number = setting(4.0, "highest strength of an edit, and of its opposite", ge=0)
    body_bytes: Whole = setting(64 * 1024, "largest body of a request", unit="bytes", ge=1)
    receive_timeout: Number = setting(
        30.0, "longest time for a client to send a request, its head and its body each", unit="seconds", gt=0
    )
    picture_urls: bool = setting(True, "whether requests may ask for URLs of pictures, which this process keeps")
    keep_pictures: Number = setting(600.0, "how long a picture is kept for its URL", unit="seconds", ge=0)
    keep_bytes: Whole = setting(
        64 * 2**20, "most memory for pictures kept for their URLs; the oldest go first", unit="bytes", ge=0
    )
    allowed_hosts: Words | None = setting(
        None, "the Host headers that are answered", form="names of hosts", default_text="all"
    )
    warm_up: bool = setting(True, "whether to draw a picture before requests are taken")

    @property
    def served_name(self) -> str:
        """The model's name as clients see it: of a local folder the last part alone."""
        return Path(self.model).resolve().name if Path(self.model).is_dir() else self.model.removeprefix("hub:")

    def cross_faults(self) -> list[Fault]:
        """Return the settings that are above the largest value that another setting allows."""
        pairs = (("steps", "max_steps"), ("guidance_scale", "max_guidance_scale"), ("max_n", "max_queue"))
        return [
            Fault(name, f"is {value:.15g}, expected at most {most:.15g}", limit)
            for name, limit in pairs
            if (value := getattr(self, name)) is not None and value > (most := getattr(self, limit))
        ]

    def completed(self, **defaults: Any) -> Settings:
        """Fill settings that are None: those in ``defaults`` with the pipeline's, ``max_n`` from the queue.

        Raises:
            SettingsError: a value of the pipeline is beyond a limit.
        """
        filled = {"max_n": min(8, self.max_queue), **defaults}
        absent = {name: value for name, value in filled.items() if getattr(self, name) is None}
        return type(self)(**{**self.model_dump(), **absent})

    def limits(self) -> dict[str, Any]:
        """Return what requests may ask for, and their defaults."""
        return {name: getattr(self, name) for name in LIMITS}


@dataclass(frozen=True)
class SettingInfo:
    """One setting in words: what it may be, its default, and what it does."""

    name: str
    kind: str
    default: str
    description: str
    unit: str | None
    is_switch: bool
    is_list: bool
    required: bool

    @classmethod
    def of(cls, model: type[Checked], name: str) -> SettingInfo:
        """Describe a setting of ``model``."""
        field = model.model_fields[name]
        base = _base_type(field.annotation)
        extra: Any = field.json_schema_extra  # as ``setting`` wrote it
        assert field.description is not None, "every setting has one"
        return cls(
            name=name,
            kind=_kind(field, base, extra),
            default="" if field.is_required() else extra["default_text"] or _default_text(field.default),
            description=field.description,
            unit=extra["unit"],
            is_switch=base is bool,
            is_list=base is tuple,
            required=field.is_required(),
        )


def _base_type(annotation: Any) -> type:
    """Strip None and annotations off a type."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        (annotation,) = (part for part in typing.get_args(annotation) if part is not types.NoneType)
    if typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    return typing.get_origin(annotation) or annotation


def _kind(field: FieldInfo, base: type, extra: Mapping[str, Any]) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", tuple: "a list", str: "text"}
    text = names[base]
    if extra["form"]:
        text = extra["form"] if base is str else f"{text} of {extra['form']}"
    if extra["unit"]:
        text += f" of {extra['unit']}"
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    for bound in field.metadata:
        for key, phrase in words.items():
            if (limit := getattr(bound, key, None)) is not None:
                text += f", {phrase} {limit:.15g}"
    return text


def _default_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return " ".join(value)
    return "none" if value is None else f"{value:.15g}" if isinstance(value, float) else str(value)


def _fault(model: type[Checked], error: Mapping[str, Any]) -> Fault:
    """Put an error of pydantic into words."""
    name = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        return Fault(name, f"is no setting: the settings are {', '.join(model.model_fields)}")
    info = SettingInfo.of(model, name)
    if error["type"] == "missing":
        return Fault(name, f"is missing: {info.description}")
    verb = "is" if len(error["loc"]) == 1 else "has"
    return Fault(name, f"{verb} {error['input']!r}, expected {info.kind}")


def read_admin_token(path: str | Path | None) -> str | None:
    """Read the token of the admin routes from a file, or else from CAD_FAST_ADMIN_TOKEN.

    Returns:
        The token, or None if there is neither.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the token has fewer than 16 characters.
    """
    token = Path(path).read_text(encoding="utf-8").strip() if path else envs.get("CAD_FAST_ADMIN_TOKEN") or None
    if token is not None and len(token) < 16:
        raise ValueError("the admin token has fewer than 16 characters: take a longer one")
    return token
