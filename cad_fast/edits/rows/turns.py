"""Whose turn a denoiser is: that of one thread at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from weakref import WeakKeyDictionary

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
