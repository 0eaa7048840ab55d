"""What a denoiser's modules run, to notice when some of it is replaced after the denoiser was tried."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn

from .surroundings import CallCounter


class Construction:
    """What runs in each of a denoiser's modules: its class, a forward of its own, its processor, its hooks.

    Left out are what our own contexts put there for a time, the forward of single layers and counters of calls, and the
    hooks of the denoiser as a whole.

    Args:
        denoiser: the module itself, not what torch.compile makes of it.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self._parts = [_weak(part) for part in _parts_of(denoiser)]

    def of(self, denoiser: nn.Module) -> bool:
        """Whether all of it in a denoiser is as it was when this was made."""
        now = _parts_of(denoiser)
        return len(now) == len(self._parts) and all(
            part == then if isinstance(then, int) else part is then()
            for part, then in zip(now, self._parts, strict=True)
        )


def _parts_of(denoiser: nn.Module) -> list[Any]:
    parts: list[Any] = []
    for module in denoiser.modules():
        entries = module.__dict__
        parts += (type(module), entries.get("processor", module._modules.get("processor")))
        if module._modules:
            parts += (_function(entries.get(name)) for name in ("forward", "_old_forward"))
        if module is not denoiser:
            # The keys: no two hooks of a process ever have the same.
            parts += module._forward_hooks
            parts += (key for key, hook in module._forward_pre_hooks.items() if not isinstance(hook, CallCounter))
    return parts


def _weak(part: Any) -> Any:
    """What gives a part back while it lives, so that a denoiser goes though a patch of its own holds it."""
    if isinstance(part, int):
        return part
    try:
        return weakref.ref(part)
    except TypeError:  # None, and what has slots
        return lambda: part


def _function(forward: Any) -> Any:
    """The function of a method: a method is another object each time it is looked up.

    What stands in a forward's place for the length of a call is looked through.
    """
    forward = getattr(forward, "replaced", forward)
    return getattr(forward, "__func__", forward)
