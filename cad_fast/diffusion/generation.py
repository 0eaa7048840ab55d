"""How a pipeline generates: its steps, its guidance, and what else its call takes."""

from __future__ import annotations

import inspect
import json
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

# Arguments of a pipeline's call that whoever calls it sets, and what to pass instead.
RESERVED = {
    "prompt": "pass the prompts as `prompts`",
    "generator": "pass `seeds` or `seed`",
    "output_type": "pass `keep_images` where pictures are wanted",
    "num_images_per_prompt": "repeat the prompt instead",
    "num_videos_per_prompt": "repeat the prompt instead",
    "return_dict": "leave it out, the result is read in either form",
}
NAMED = ("num_inference_steps", "guidance_scale")
# With one of these the pipeline takes the number of steps from the schedule that is given.
SCHEDULES = ("timesteps", "sigmas")


@dataclass(frozen=True, repr=False)
class Generation:
    """How a pipeline generates.

    ::

        generation = Generation(20, 3.0, {"height": 512, "width": 512})
        generation == Generation.of(num_inference_steps=20, guidance_scale=3.0, height=512, width=512)
        record(pipeline, prompts, **generation.to_kwargs())
        evaluate(pipeline, prompts, scorer, generation=generation)

    Args:
        num_inference_steps: The number of denoising steps. None for the pipeline's own default.
        guidance_scale: The scale of classifier-free guidance. None for the pipeline's own default.
        arguments: What else the pipeline's call takes, such as ``height`` or ``negative_prompt``. A copy is kept.

    Raises:
        TypeError: A field is of another kind. The message names it.
        ValueError: A field is out of range, or ``arguments`` has what is set elsewhere. The message says where.
    """

    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, checked in (("num_inference_steps", _steps), ("guidance_scale", _scale)):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else checked(value))
        if not isinstance(self.arguments, Mapping):
            raise TypeError(f"arguments is a {type(self.arguments).__name__}, expected a mapping of names to values")
        for name in self.arguments:
            if not isinstance(name, str):
                raise TypeError(f"arguments has the name {name!r}, expected a text")
            if name in NAMED:
                raise ValueError(f"arguments has {name!r}, which is a field: pass Generation({name}=...)")
            if name in RESERVED:
                raise ValueError(f"the pipeline argument {name!r} is set by cad_fast: {RESERVED[name]}")
        object.__setattr__(self, "arguments", MappingProxyType(dict(self.arguments)))

    @classmethod
    def of(cls, generation: Generation | None = None, /, **pipeline_kwargs: Any) -> Generation:
        """Return ``generation``, or the defaults, with the given arguments of the pipeline's call replaced.

        Raises:
            TypeError: ``generation`` is something else.
            TypeError, ValueError: As for the fields.
        """
        if generation is not None and not isinstance(generation, cls):
            raise TypeError(f"generation is a {type(generation).__name__}, expected a Generation or None")
        generation = generation or cls()
        fields = {name: pipeline_kwargs.pop(name) for name in NAMED if name in pipeline_kwargs}
        return replace(generation, **fields, arguments={**generation.arguments, **pipeline_kwargs})

    def resolved(self, pipeline: Any) -> Generation:
        """Return it with the pipeline's defaults in place of None, where the pipeline has such arguments.

        Steps stay None where ``arguments`` holds a schedule, which tells their number.

        Raises:
            ValueError: The pipeline does not take an argument. The message names it. Or it is a modular pipeline.
        """
        require_own_arguments(pipeline)
        parameters = inspect.signature(pipeline.__call__).parameters
        takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
        for name in self.to_kwargs():
            if name not in parameters and not takes_any:
                raise ValueError(f"{type(pipeline).__name__} takes no argument {name!r}")
        defaults = {name: parameters[name].default for name in NAMED if name in parameters}
        if any(name in self.arguments for name in SCHEDULES):
            defaults.pop("num_inference_steps", None)
        known = {name: value for name, value in defaults.items() if value is not inspect.Parameter.empty}
        return replace(self, **{name: value for name, value in known.items() if getattr(self, name) is None})

    def to_kwargs(self, n_rows: int | None = None) -> dict[str, Any]:
        """Return the keyword arguments of a pipeline's call. What is None is left to the pipeline.

        Args:
            n_rows: The number of prompts, where they are a list. One negative prompt for all becomes one each then,
                as pipelines want it.
        """
        fields = {name: value for name in NAMED if (value := getattr(self, name)) is not None}
        return {**fields, **{name: _each(name, value, n_rows) for name, value in self.arguments.items()}}

    def storable(self) -> Generation:
        """Return it without the arguments that JSON cannot hold. The others are as JSON reads them back."""
        return replace(self, arguments=storable(self.arguments))

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON, under the names that files have: ``arguments`` is "pipeline_kwargs".

        Raises:
            ValueError: JSON cannot hold an argument. The message names it.
        """
        kept = {}
        for name, value in self.arguments.items():
            try:
                kept[name] = _as_json(value)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"the pipeline argument {name!r} is kept with the results and must be a JSON value: {error}"
                ) from error
        return {**{name: getattr(self, name) for name in NAMED}, "pipeline_kwargs": kept}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Generation:
        """Read what ``to_dict`` gave. Other entries are left alone; without "pipeline_kwargs" there are none.

        Raises:
            ValueError: An entry is missing, of another kind or out of range. The message names it.
        """
        for name in NAMED:
            if name not in saved:
                raise ValueError(f"{name} is missing, expected a number or null")
        arguments = saved.get("pipeline_kwargs", {})
        if not isinstance(arguments, dict):
            raise ValueError(f"pipeline_kwargs is {arguments!r:.80}, expected an object")
        try:
            return cls(saved["num_inference_steps"], saved["guidance_scale"], arguments)
        except TypeError as error:
            raise ValueError(str(error)) from error

    def __hash__(self) -> int:
        return hash((self.num_inference_steps, self.guidance_scale, frozenset(self.arguments)))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.num_inference_steps, self.guidance_scale, dict(self.arguments))

    def __repr__(self) -> str:
        shown = [f"{name}={value!r}" for name in NAMED if (value := getattr(self, name)) is not None]
        if self.arguments:
            shown.append(f"arguments={dict(self.arguments)!r}")
        return f"Generation({', '.join(shown)})"


def storable(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that JSON can hold, as it reads them back."""
    kept = {}
    for name, value in arguments.items():
        try:
            kept[name] = _as_json(value)
        except (TypeError, ValueError):
            continue
    return kept


def not_storable(arguments: Mapping[str, Any]) -> list[str]:
    """Return the names of the arguments that JSON cannot hold, sorted."""
    return sorted(arguments.keys() - storable(arguments).keys())


def _steps(value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"num_inference_steps is {value!r:.80}, expected a whole number, or None")
    if operator.index(value) < 1:
        raise ValueError(f"num_inference_steps is {value}, expected at least 1, or None for the pipeline's own")
    return operator.index(value)


def _scale(value: Any) -> float:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"guidance_scale is {value!r:.80}, expected a number, or None")
    if not math.isfinite(value):
        raise ValueError(f"guidance_scale is {value}, expected a finite number, or None for the pipeline's own")
    return float(value)


def _each(name: str, value: Any, n_rows: int | None) -> Any:
    alone = name.startswith("negative_prompt") and isinstance(value, str)
    return value if n_rows is None or not alone else [value] * n_rows


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, allow_nan=False))


def require_own_arguments(pipeline: Any) -> None:
    """Raise ValueError for a modular pipeline of diffusers, whose call does not say which arguments it takes."""
    if any(kind.__name__ == "ModularPipeline" for kind in type(pipeline).__mro__):
        raise ValueError(
            f"{type(pipeline).__name__} is a modular pipeline, whose call does not say which arguments it takes and "
            "what it gives: make an ordinary pipeline of its components, such as StableDiffusion3Pipeline(...). Both "
            "share the denoiser, so that edits made with the one act in the other"
        )
