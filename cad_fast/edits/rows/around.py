"""Functions around a denoiser's calls, outside of what torch.compile compiles, and whose turn the denoiser is."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

# The threads whose contexts are open, by denoiser; several only where one thread has nested them.
_owners: WeakKeyDictionary[nn.Module, list[int]] = WeakKeyDictionary()
_claiming = threading.Lock()


@contextlib.contextmanager
def claimed(denoiser: nn.Module) -> Iterator[None]:
    """A context in which the denoiser is this thread's.

    Raises:
        RuntimeError: it is another thread's.
    """
    with _claiming:
        require_turn(denoiser, "rows of")
        threads = _owners.setdefault(denoiser, [])
        threads.append(threading.get_ident())
    try:
        yield
    finally:
        with _claiming:
            threads.pop()


def require_turn(denoiser: nn.Module, doing: str) -> None:
    """Raise RuntimeError if the denoiser is another thread's, saying that ``doing`` it is not possible."""
    if any(thread != threading.get_ident() for thread in _owners.get(denoiser, ())):
        raise RuntimeError(
            f"{doing} this denoiser cannot be run under edits: another thread has rows under edits of its own there "
            "(per_prompt, RowEdits.rows). Wait until it is done, or give each thread a pipeline with a denoiser of its "
            "own"
        )


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
        check: Callable[[], None],
        after: Callable[[], None],
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


def _nothing(*_: Any) -> None:
    pass
