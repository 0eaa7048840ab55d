"""What a pipeline changes in its denoiser while it is called: attention processors, switches, hooks.

All runs share the denoiser, so what one of them changes holds for the passes of the others too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn

from .calls import same

_MISSING = object()
# diffusers keeps the name of a cache's context here; a denoiser that has a cache is not served.
_IGNORED = frozenset({"_diffusers_hook"})


class Change(NamedTuple):
    """One entry of a module's attributes, submodules or hooks, before it was changed and after."""

    entries: dict[Any, Any]
    key: Any
    before: Any
    after: Any
    name: str

    def undo(self) -> None:
        """Put back what was there before."""
        _put(self.entries, self.key, self.before)


def _put(entries: dict[Any, Any], key: Any, value: Any) -> None:
    if value is _MISSING:
        entries.pop(key, None)
    else:
        entries[key] = value


def undo(changes: Iterable[Change]) -> None:
    """Undo changes, the last one first."""
    for change in reversed(list(changes)):
        change.undo()


class DenoiserState:
    """The state of a denoiser that pipelines change, compared before and after they go on.

    torch's own layers are left out: there are many, and no pipeline of diffusers changes one during a call.

    Args:
        denoiser: the denoiser that runs.
        stand_in: the copy that the pipeline has in its place, which shares all submodules.
    """

    def __init__(self, denoiser: nn.Module, stand_in: nn.Module) -> None:
        named = [(name, m) for name, m in denoiser.named_modules() if not type(m).__module__.startswith("torch.")]
        self._watched: list[tuple[str, dict[Any, Any]]] = [("", vars(stand_in))]
        for name, module in named:
            attributes = vars(module)
            self._watched.append((name, attributes))
            self._watched += [(name, attributes[kind]) for kind in ("_modules", "_forward_hooks", "_forward_pre_hooks")]
        self._entries = [entries for _, entries in self._watched]
        self._stand_in, self._denoiser = vars(stand_in), vars(denoiser)
        self._before: list[dict[Any, Any]] = []

    def look(self) -> None:
        """Remember the state."""
        self._before = list(map(dict.copy, self._entries))

    def changes(self) -> list[Change]:
        """Return what has changed since ``look``."""
        try:
            if self._before == self._entries:
                return []
        except (ValueError, TypeError, RuntimeError):  # things whose comparison is no plain truth
            pass
        result: list[Change] = []
        for (name, entries), before in zip(self._watched, self._before, strict=True):
            for key in dict.fromkeys([*before, *entries]):
                first, second = before.get(key, _MISSING), entries.get(key, _MISSING)
                if key not in _IGNORED and first is not second and not same(first, second):
                    path = f"{name}.{key}" if name else str(key)
                    result.append(Change(entries, key, first, second, path))
        return result

    def shared(self, changes: Iterable[Change]) -> list[Change]:
        """Let the denoiser have the changes of its stand-in too; return these changes of the denoiser."""
        mirrored = []
        for change in changes:
            if change.entries is self._stand_in:
                before = self._denoiser.get(change.key, _MISSING)
                _put(self._denoiser, change.key, change.after)
                mirrored.append(Change(self._denoiser, change.key, before, change.after, change.name))
        return mirrored
