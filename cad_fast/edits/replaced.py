"""A pipeline whose denoiser cannot be replaced unseen, on this instance alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import nn

from ..diffusion.denoisers import whole_pipeline

_changing = threading.Lock()


def guard_denoiser(pipeline: Any, denoiser: nn.Module) -> Callable[[], None]:
    """Have assignments of another denoiser in its place, such as to ``pipeline.unet``, raise RuntimeError.

    The instance gets a class of its own for as long, derived from its class and of the same name; its copies do not.

    Returns:
        What ends the guard.
    """
    pipeline = whole_pipeline(pipeline)
    if isinstance(pipeline, nn.Module):
        return _nothing
    inner = _inner(denoiser)
    part = next((name for name, value in vars(pipeline).items() if _inner(value) is inner), None)
    if part is None:
        return _nothing
    guard = (part, inner)
    with _changing:
        kind: Any = type(pipeline)
        if "_cad_fast_guards" not in kind.__dict__:
            kind = _guarded(kind)
            pipeline.__class__ = kind
        guards: list[tuple[str, nn.Module]] = kind._cad_fast_guards
        guards.append(guard)

    def end() -> None:
        with _changing:
            guards.remove(guard)
            if not guards and type(pipeline) is kind:
                pipeline.__class__ = kind.__mro__[1]

    return end


def _guarded(kind: Any) -> Any:
    guards: list[tuple[str, nn.Module]] = []

    def assign(pipeline: Any, name: str, value: Any) -> None:
        for part, denoiser in guards:
            if name == part and _inner(value) is not denoiser:
                raise RuntimeError(
                    f"pipeline.{name} cannot be replaced while an EditManager has edits active in the present one: "
                    "call disable_edits (unfuse_edits, if they are fused) first, and make a new manager for the other"
                )
        kind.__setattr__(pipeline, name, value)

    def reduce(pipeline: Any, protocol: Any) -> Any:
        make, arguments, *state = kind.__reduce_ex__(pipeline, protocol)
        # pickle takes copyreg's own maker only for an object of the very class.
        make = _new if make.__name__ == "__newobj__" else make
        return (make, tuple(kind if each is type(pipeline) else each for each in arguments), *state)

    entries = {
        "__setattr__": assign,
        "__reduce_ex__": reduce,
        "__module__": kind.__module__,
        "__doc__": kind.__doc__,
        "__qualname__": kind.__qualname__,
        "_cad_fast_guards": guards,
    }
    return type(kind)(kind.__name__, (kind,), entries)


def _new(kind: Any, *arguments: Any) -> Any:
    return kind.__new__(kind, *arguments)


def _inner(module: Any) -> Any:
    return getattr(module, "_orig_mod", module)  # what torch.compile wraps


def _nothing() -> None:
    pass
