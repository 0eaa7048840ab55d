"""A copy of a pipeline whose heavy parts hand their calls over to be batched; the pipeline itself is left as it is."""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import nn

from ...denoiser_calls import denoiser_of
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


def intercepted(pipeline: Any, intercept: Intercept) -> tuple[Any, Part]:
    """(copy of ``pipeline``, the denoiser's part): the copy's denoiser, text encoders and VAE call ``intercept``.

    The copy shares every weight and every module below the intercepted ones, so what is done to the pipeline's own
    parts (edits, hooks, LoRA) holds for the passes. It draws no progress bars.
    Raises TypeError when there is no denoiser, ValueError when parts are moved between devices by hooks.
    """
    denoiser = denoiser_of(pipeline)
    if getattr(pipeline, "_all_hooks", None):
        raise ValueError(
            f"{type(pipeline).__name__} offloads its parts to the CPU between calls: serve it from one device"
        )
    twin = _shallow(pipeline)
    denoiser_part = _forward_of("denoiser", denoiser, DENOISER)
    own = {id(denoiser): ("forward", denoiser_part)}
    for name in ENCODERS:
        encoder = getattr(pipeline, name, None)
        if isinstance(encoder, nn.Module):
            own[id(encoder)] = ("forward", _forward_of(name, encoder, FIRST))
    vae = getattr(pipeline, "vae", None)
    if isinstance(vae, nn.Module) and hasattr(vae, "decode"):
        ignores = frozenset({"generator"}) if type(vae).__name__ in DRAWS_NOTHING else frozenset()
        own[id(vae)] = ("decode", Part("vae", vae.decode, inspect.signature(vae.decode), FIRST, ignores))
    for name, module in list(vars(pipeline).items()):
        if id(module) in own:
            twin.__dict__[name] = _stand_in(module, *own[id(module)], intercept)
    progress = {**(getattr(pipeline, "_progress_bar_config", None) or {}), "disable": True}
    twin.__dict__["_progress_bar_config"] = progress
    twin.__class__ = _with_fixed_device(pipeline)
    return twin, denoiser_part


def for_one_run(twin: Any) -> Any:
    """A copy of what ``intercepted`` gave with a scheduler of its own, for one run at a time."""
    own = _shallow(twin)
    if getattr(twin, "scheduler", None) is not None:
        own.__dict__["scheduler"] = copy.deepcopy(twin.scheduler)
    return own


def _forward_of(name: str, module: nn.Module, priority: int) -> Part:
    """The module called as a whole, with its hooks, under the argument names of its forward."""
    plain = getattr(module, "_orig_mod", module)  # what torch.compile wraps
    return Part(name, module, inspect.signature(plain.forward), priority)


def _shallow(pipeline: Any) -> Any:
    twin = object.__new__(type(pipeline))
    twin.__dict__.update(pipeline.__dict__)
    return twin


def _with_fixed_device(pipeline: Any) -> type:
    """The pipeline's class with its device as a constant: it is asked for several times a run, and found by walking
    over every module of every part, which on a small model took 4% of the time.
    """
    kind = type(pipeline)
    if not hasattr(kind, "_execution_device"):
        return kind
    return type(kind.__name__, (kind,), {"_execution_device": pipeline._execution_device})


def _stand_in(module: nn.Module, method: str, part: Part, intercept: Intercept) -> nn.Module:
    """The module again, sharing all it holds, but with ``method`` intercepted and without hooks, which run below."""
    twin = object.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    for hooks in _HOOKS:
        twin.__dict__[hooks] = OrderedDict()

    def hand_over(*args: Any, **kwargs: Any) -> Any:
        return intercept(part, args, kwargs)

    twin.__dict__[method] = hand_over
    return twin
