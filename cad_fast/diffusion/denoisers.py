"""Which denoiser a pipeline has, how its forward names its arguments, and what it returns."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TIMESTEP_NAMES = ("timestep", "timesteps", "t", "timestep_ratio")


class PipelinePart:
    """A pipeline seen by one of its denoisers, for pipelines that have several (Wan 2.2, Kandinsky's and Cascade's).

    ::

        low_noise = cad_fast.PipelinePart(pipeline, "transformer_2")
        recording = cad_fast.record(low_noise, "a cat")     # the calls of transformer_2
        with edit.applied(low_noise): ...

    It goes wherever a pipeline does. Everything but the denoiser is the pipeline's own.

    Args:
        pipeline: a diffusers pipeline.
        part: the name of the component that is the denoiser.

    Raises:
        ValueError: the pipeline has no such denoiser; the message names those there are.
    """

    def __init__(self, pipeline: Any, part: str) -> None:
        pipeline = whole_pipeline(pipeline)
        there = denoisers_in(pipeline)
        if part not in there:
            raise ValueError(f"{type(pipeline).__name__} has no denoiser {part!r}; it has {', '.join(there) or 'none'}")
        vars(self).update(_pipeline=pipeline, _part=part, __call__=pipeline.__call__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return vars(self)["_pipeline"](*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name not in vars(self) and "_pipeline" not in vars(self):  # while it is being copied
            raise AttributeError(name)
        return getattr(vars(self)["_pipeline"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(vars(self)["_pipeline"], name, value)

    def __delattr__(self, name: str) -> None:
        delattr(vars(self)["_pipeline"], name)

    def __copy__(self) -> PipelinePart:
        return PipelinePart(copy.copy(vars(self)["_pipeline"]), vars(self)["_part"])

    def __deepcopy__(self, memo: dict[int, Any]) -> PipelinePart:
        return PipelinePart(copy.deepcopy(vars(self)["_pipeline"], memo), vars(self)["_part"])

    def __reduce__(self) -> tuple[Any, ...]:
        return PipelinePart, (vars(self)["_pipeline"], vars(self)["_part"])

    def __repr__(self) -> str:
        return f"PipelinePart({type(whole_pipeline(self)).__name__}, {denoiser_name(self)!r})"


def whole_pipeline(pipeline: Any) -> Any:
    """What a ``PipelinePart`` is a view of; anything else is itself."""
    return vars(pipeline)["_pipeline"] if isinstance(pipeline, PipelinePart) else pipeline


def denoisers_in(pipeline: Any) -> dict[str, nn.Module]:
    """A pipeline's components that take a noisy sample and a timestep, by name; ControlNets are none."""
    components = getattr(pipeline, "components", None)
    components = components if isinstance(components, dict) else {}
    named = {name: getattr(pipeline, name, None) for name in ("unet", "transformer", *components)}
    return {name: module for name, module in named.items() if isinstance(module, nn.Module) and _denoises(module)}


def _denoises(module: nn.Module) -> bool:
    inner = getattr(module, "_orig_mod", module)  # what torch.compile wraps
    if "ControlNet" in type(inner).__name__:
        return False
    try:
        names = list(inspect.signature(inner.forward).parameters)
    except (TypeError, ValueError):
        return False
    return len(names) > 1 and names[0] not in TIMESTEP_NAMES and any(name in names for name in TIMESTEP_NAMES)


def require_one_of_its_kind(pipeline: Any) -> None:
    """Raise ValueError for a pipeline that draws with several denoisers of one class, unless one was chosen.

    An edit of one of them alone would act in some of the steps, and nobody would know.
    """
    if isinstance(pipeline, (PipelinePart, nn.Module)):
        return
    denoiser = denoiser_of(pipeline)
    same = [name for name, module in denoisers_in(pipeline).items() if type(module) is type(denoiser)]
    if len(same) > 1:
        raise ValueError(
            f"{type(pipeline).__name__} draws with {' and '.join(same)}, each in some of the steps, and edits are of "
            f"one: say which, as PipelinePart(pipeline, {same[0]!r}) or --part, and edit the others too"
        )


def denoiser_name(pipeline: Any) -> str:
    """The name of the component that ``denoiser_of`` gives; "denoiser" for a bare module."""
    if isinstance(pipeline, PipelinePart):
        return str(vars(pipeline)["_part"])
    if isinstance(pipeline, nn.Module):
        return "denoiser"
    denoiser = denoiser_of(pipeline)
    return next((name for name, module in denoisers_in(pipeline).items() if module is denoiser), "denoiser")


def denoiser_of(pipeline_or_module: Any) -> nn.Module:
    """The denoiser: ``pipeline.unet``, ``pipeline.transformer``, the only component that is one, or the module itself.

    Raises TypeError naming what was found when there is none, or none that is meant.
    """
    if isinstance(pipeline_or_module, nn.Module):
        return pipeline_or_module
    if isinstance(pipeline_or_module, PipelinePart):
        denoiser = getattr(pipeline_or_module, vars(pipeline_or_module)["_part"])
        assert isinstance(denoiser, nn.Module), "a part is looked up when the view is made"
        return denoiser
    for name in ("unet", "transformer"):
        denoiser = getattr(pipeline_or_module, name, None)
        if isinstance(denoiser, nn.Module):
            return denoiser
    there = denoisers_in(pipeline_or_module)
    if len(there) == 1:
        return next(iter(there.values()))
    owner = type(pipeline_or_module).__name__
    if there:
        first = next(iter(there))
        raise TypeError(
            f"{owner} has several denoisers ({', '.join(there)}): say which one is meant, as "
            f"PipelinePart(pipeline, {first!r}), or --part {first} on the command line"
        )
    components = getattr(pipeline_or_module, "components", None) or {}
    parts = sorted(name for name, part in components.items() if part is not None)
    has = f"whose parts are {', '.join(parts)}" if parts else "which is neither a pipeline nor a torch module"
    raise TypeError(
        f"no denoiser found: expected a pipeline with a `unet` or a `transformer`, or the module itself; "
        f"got {owner}, {has}"
    )


@dataclass(frozen=True)
class ForwardSignature:
    """How a denoiser's forward names its arguments: the sample comes first, the timestep is known by name."""

    signature: inspect.Signature
    sample_key: str
    timestep_key: str
    owner: str

    @classmethod
    def of(cls, denoiser: nn.Module) -> ForwardSignature:
        """Raises ValueError naming the parameters found when the sample or the timestep is not among them."""
        module = getattr(denoiser, "_orig_mod", denoiser)  # what torch.compile wraps
        owner = type(module).__name__
        signature = inspect.signature(module.forward)
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        names = [name for name, parameter in signature.parameters.items() if parameter.kind not in variadic]
        timestep_key = next((name for name in TIMESTEP_NAMES if name in names), None)
        if not names or timestep_key is None or names[0] == timestep_key:
            raise ValueError(
                f"{owner}.forward takes ({', '.join(names)}): expected the sample first, "
                f"and a timestep named one of {', '.join(TIMESTEP_NAMES)}"
            )
        return cls(signature, names[0], timestep_key, owner)

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of one call by name. Raises ValueError when the sample is not one tensor, or absent."""
        bound = self.signature.bind_partial(*args, **kwargs).arguments
        inputs: dict[str, Any] = {}
        for name, value in bound.items():
            kind = self.signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL and value:
                raise ValueError(f"{self.owner} was called with nameless arguments (*{name}), which cannot be recorded")
            if kind is inspect.Parameter.VAR_KEYWORD:
                inputs.update(value)
            elif kind is not inspect.Parameter.VAR_POSITIONAL:
                inputs[name] = value
        sample = inputs.get(self.sample_key)
        if not isinstance(sample, Tensor) or sample.ndim < 2:
            raise ValueError(
                f"{self.owner}'s first argument {self.sample_key!r} is a {type(sample).__name__}, expected one tensor "
                "whose rows are the samples; models that take a list of tensors are not supported"
            )
        if self.timestep_key not in inputs:
            raise ValueError(f"{self.owner} was called without {self.timestep_key!r}")
        return inputs


def output_tensor(output: Any) -> Tensor:
    """The tensor in what a denoiser returned: itself, its ``.sample``, or the first of a tuple.

    Raises TypeError naming the type otherwise.
    """
    tensor = output
    if not isinstance(tensor, Tensor):
        tensor = output[0] if isinstance(output, tuple) and output else getattr(output, "sample", None)
    if not isinstance(tensor, Tensor):
        raise TypeError(f"the denoiser returned a {type(output).__name__}, expected a tensor, a tuple or `.sample`")
    return tensor


def timestep_value(value: Any) -> float | Tensor:
    """A denoiser's timestep argument as a number, or float32 [rows] where rows differ (of several in a row largest)."""
    if not isinstance(value, Tensor):
        return float(value)
    flat = value.detach().cpu().float().reshape(len(value), -1).amax(1) if value.ndim else value.detach().cpu().float()
    return float(flat.flatten()[0]) if bool((flat == flat.flatten()[0]).all()) else flat


def device_of(module: nn.Module) -> torch.device | None:
    """Where the module's parameters are; None when they are offloaded or there are none (then nothing is moved)."""
    device = next((parameter.device for parameter in module.parameters()), None)
    return None if device is None or device.type == "meta" or hasattr(module, "_hf_hook") else device
