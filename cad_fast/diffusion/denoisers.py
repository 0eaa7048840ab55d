"""Which denoiser a pipeline has, how its forward names its arguments, and what it returns."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TIMESTEP_NAMES = ("timestep", "timesteps", "t", "timestep_ratio")


def denoiser_of(pipeline_or_module: Any) -> nn.Module:
    """The denoiser: ``pipeline.unet``, ``pipeline.transformer``, or the module itself.

    Raises TypeError naming what was found when there is neither.
    """
    if isinstance(pipeline_or_module, nn.Module):
        return pipeline_or_module
    for name in ("unet", "transformer"):
        denoiser = getattr(pipeline_or_module, name, None)
        if isinstance(denoiser, nn.Module):
            return denoiser
    names = sorted(getattr(pipeline_or_module, "components", None) or {})
    parts = f"whose parts are {', '.join(names)}" if names else "which is neither a pipeline nor a torch module"
    raise TypeError(
        f"no denoiser found: expected a pipeline with a `unet` or a `transformer`, or the module itself; "
        f"got {type(pipeline_or_module).__name__}, {parts}"
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
