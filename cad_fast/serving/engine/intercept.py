"""A copy of a pipeline whose heavy parts hand their calls over to be batched. The pipeline itself stays as it is."""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import nn

from ...diffusion.context import inner_pipelines, with_inner
from ...diffusion.denoisers import denoiser_of, whole_pipeline
from .calls import Part

# (args, kwargs) of a part's call -> its output
Intercept = Callable[[Part, tuple[Any, ...], dict[str, Any]], Any]

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
FIRST, DENOISER = 0, 1
# VAEs whose decode takes a generator and draws nothing from it.
DRAWS_NOTHING = frozenset({"AutoencoderKL", "AutoencoderTiny"})
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
)


class Intercepted(NamedTuple):
    """A copy of a pipeline, the part that its denoiser is, and what the copy has in the denoiser's place."""

    twin: Any
    denoiser: Part
    stand_in: nn.Module


def intercepted(pipeline: Any, intercept: Intercept) -> Intercepted:
    """Copy a pipeline so that its denoiser, text encoders and VAE call ``intercept``.

    The copy shares every weight and every module below the intercepted ones. Edits, hooks and LoRA of the pipeline's
    own parts therefore hold for the passes. Pipelines that it is made of are copied alike. The copy draws no progress
    bars.

    Args:
        pipeline: any pipeline with a denoiser.
        intercept: gets the part, the positional and the named arguments of each call, and returns its output.

    Raises:
        TypeError: there is no denoiser.
        ValueError: the pipeline moves its parts between devices, or holds its denoiser where the copy cannot replace
            it; or its denoiser has a cache.
    """
    denoiser, whole = denoiser_of(pipeline), whole_pipeline(pipeline)
    _check(whole, denoiser)
    denoiser_part = _forward_of("denoiser", denoiser, DENOISER)
    stand_ins = {id(denoiser): _stand_in(denoiser, "forward", denoiser_part, intercept)}
    for name in ENCODERS:
        encoder = getattr(whole, name, None)
        if isinstance(encoder, nn.Module):
            stand_ins[id(encoder)] = _stand_in(encoder, "forward", _forward_of(name, encoder, FIRST), intercept)
    vae = getattr(whole, "vae", None)
    if isinstance(vae, nn.Module) and hasattr(vae, "decode"):
        ignores = frozenset({"generator"}) if type(vae).__name__ in DRAWS_NOTHING else frozenset()
        decode: Any = vae.decode
        part = Part("vae", decode, inspect.signature(decode), FIRST, ignores)
        stand_ins[id(vae)] = _stand_in(vae, "decode", part, intercept)
    return Intercepted(_twin(whole, stand_ins), denoiser_part, stand_ins[id(denoiser)])


def _check(pipeline: Any, denoiser: nn.Module) -> None:
    for each in with_inner(pipeline):
        if getattr(each, "_all_hooks", None):
            raise ValueError(
                f"{type(each).__name__} offloads its parts to the CPU between calls: serve it from one device"
            )
        for name, value in vars(each).items():
            if name not in inner_pipelines(each) and any(held is denoiser for held in _held_by(value)):
                raise ValueError(
                    f"{type(each).__name__}.{name} holds the denoiser too, whose calls there cannot be told apart by "
                    "request: serve a pipeline that has its denoiser as a part of its own only"
                )
    cache = getattr(getattr(denoiser, "_orig_mod", denoiser), "_cache_config", None)
    if cache is not None:
        raise ValueError(
            f"{type(denoiser).__name__} has a cache ({type(cache).__name__}), which keeps outputs of one call for the "
            "next and decides for all rows at once: call disable_cache before it is served"
        )


def _held_by(value: Any) -> Iterable[Any]:
    """What a pipeline's attribute holds, unless it is a module."""
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, (list, tuple)):
        return value
    return () if isinstance(value, nn.Module) else getattr(value, "__dict__", {}).values()


def _twin(pipeline: Any, stand_ins: dict[int, nn.Module]) -> Any:
    """Copy a pipeline, and those that it is made of, with the stand-ins in place of modules by identity."""
    twin = _shallow(pipeline)
    for name, value in list(vars(pipeline).items()):
        if id(value) in stand_ins:
            twin.__dict__[name] = stand_ins[id(value)]
    for name, inner in inner_pipelines(pipeline).items():
        twin.__dict__[name] = _twin(inner, stand_ins)
    progress = {**(getattr(pipeline, "_progress_bar_config", None) or {}), "disable": True}
    twin.__dict__["_progress_bar_config"] = progress
    twin.__class__ = _with_fixed_device(pipeline)
    return twin


def for_one_run(twin: Any) -> Any:
    """Copy an intercepted pipeline for one run, with schedulers and guiders of its own, which count its steps."""
    return _for_one_run(twin, {})


def _for_one_run(twin: Any, copies: dict[int, Any]) -> Any:
    copied, within = _shallow(twin), inner_pipelines(twin)
    for name, value in vars(twin).items():
        if name in within:
            copied.__dict__[name] = _for_one_run(value, copies)
        elif name.endswith("scheduler") or _is_configured(value):
            copied.__dict__[name] = copy.deepcopy(value, copies)  # one copy, also for the pipelines in it
    return copied


def _is_configured(value: Any) -> bool:
    """Whether a part is an object of diffusers with settings and a state, such as a guider, and no model."""
    return hasattr(type(value), "register_to_config") and not isinstance(value, nn.Module)


def _forward_of(name: str, module: nn.Module, priority: int) -> Part:
    """Describe a module that is called as a whole, with its hooks, under the argument names of its forward."""
    plain = getattr(module, "_orig_mod", module)  # what torch.compile wraps
    return Part(name, module, inspect.signature(plain.forward), priority)


def _shallow(pipeline: Any) -> Any:
    twin = object.__new__(type(pipeline))
    twin.__dict__.update(pipeline.__dict__)
    return twin


def _with_fixed_device(pipeline: Any) -> type:
    """Derive the pipeline's class with its device as a constant.

    A run asks for the device several times. Pipelines find it by walking over all modules of all parts, which took 4%
    of the time of a small model.
    """
    kind = type(pipeline)
    if not hasattr(kind, "_execution_device"):
        return kind
    return type(kind.__name__, (kind,), {"_execution_device": pipeline._execution_device})


def _stand_in(module: nn.Module, method: str, part: Part, intercept: Intercept) -> nn.Module:
    """Copy a module, sharing all it holds, with ``method`` intercepted and without hooks, which the part runs."""
    twin = object.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    for hooks in _HOOKS:
        twin.__dict__[hooks] = OrderedDict()

    def hand_over(*args: Any, **kwargs: Any) -> Any:
        return intercept(part, args, kwargs)

    twin.__dict__[method] = hand_over
    return twin
