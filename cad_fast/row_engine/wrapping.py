"""Put a function in the place of modules' forward for a while, around whatever is there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from .row_order import trying

Forward = Callable[..., Any]
# Is given the arguments of a call by place and by name, and the forward that it stands for.
Around = Callable[[tuple[Any, ...], dict[str, Any], Forward], Any]


class Wrapped:
    """What stands in the place of one module's forward. Trials of the order of rows go past it."""

    def __init__(self, module: nn.Module, around: Around) -> None:
        self.replaced = module.__dict__.get("forward")
        """What the module itself had there; None if it has its class's forward."""
        self._forward: Forward = module.forward
        self._around = around

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if trying():
            return self._forward(*args, **kwargs)
        return self._around(args, kwargs, self._forward)


@contextlib.contextmanager
def wrapped(modules: Mapping[nn.Module, Around]) -> Iterator[None]:
    """A context in which each module's forward is called through its function."""
    installed: list[tuple[nn.Module, Wrapped]] = []
    try:
        for module, around in modules.items():
            wrapper = Wrapped(module, around)
            module.__dict__["forward"] = wrapper
            installed.append((module, wrapper))
        yield
    finally:
        for module, wrapper in reversed(installed):
            if wrapper.replaced is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = wrapper.replaced
