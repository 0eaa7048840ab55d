"""Functions around a denoiser's calls, outside of what torch.compile compiles."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def _nothing(*_: Any) -> None:
    pass


class Around:
    """Has functions run around a denoiser's calls, until ``remove``.

    Args:
        denoiser: what is called, compiled or not.
        before: is given the arguments of each call, by place and by name. What it raises, the call raises.
        check: runs after a call that succeeded. What it raises, the call raises.
        after: runs after each call. torch leaves it out after what is no Exception, such as Ctrl-C.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        before: Callable[[tuple[Any, ...], dict[str, Any]], None],
        check: Callable[[], None] = _nothing,
        after: Callable[[], None] = _nothing,
    ) -> None:
        self._undo = contextlib.ExitStack()
        compiled: Any = None if hasattr(denoiser, "_orig_mod") else denoiser._compiled_call_impl
        if compiled is None:
            hooks = _Hooks(before, check, after)
            for handle in (
                denoiser.register_forward_pre_hook(hooks.before, with_kwargs=True),
                denoiser.register_forward_hook(hooks.check),
                denoiser.register_forward_hook(hooks.after, always_call=True),
            ):
                self._undo.callback(handle.remove)
            return

        # After module.compile() a module's hooks are part of what is compiled.
        def around(*args: Any, **kwargs: Any) -> Any:
            before(args, kwargs)
            try:
                output = compiled(*args, **kwargs)
                check()
                return output
            finally:
                after()

        denoiser._compiled_call_impl = around
        self._undo.callback(setattr, denoiser, "_compiled_call_impl", compiled)

    def remove(self) -> None:
        """Leave the denoiser's calls as they were."""
        self._undo.close()


class _Hooks:
    """A denoiser's hooks; a deep copy of the denoiser has some that do nothing, as it has no edits."""

    def __init__(self, before: Any, check: Any, after: Any) -> None:
        self._functions = (before, check, after)

    @torch.compiler.disable
    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._functions[0](args, kwargs)

    @torch.compiler.disable
    def check(self, *_: Any) -> None:
        self._functions[1]()

    @torch.compiler.disable
    def after(self, *_: Any) -> None:
        self._functions[2]()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hooks:
        return _Hooks(_nothing, _nothing, _nothing)
