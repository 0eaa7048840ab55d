"""Remembers what was prepared from tensors, so that only the first call with them prepares it.

An operator on a GPU that takes a sparse edit needs more than its indices and factors: their bits, their order, where
each tile of the weight finds its own. To make that takes tens of launches and waits for the GPU, to use it takes one.

What is kept follows the tensors it was made from. It is found again for the very same tensors only (not for equal ones,
nor for others at the address of some that are gone), as long as torch has counted no change to them, in place, through
a view or by resizing, and they have not been given other memory. It goes when one of them goes. Two ways to change a
tensor are counted by nobody: writing through ``tensor.data``, and through memory that is shared with other libraries.
Tensors made under torch.inference_mode count no changes at all; what is made from these is never kept. A clone made
outside of it is an ordinary tensor.

Kept are the most recently used values, up to CAD_FAST_REMEMBERED_BYTES. What a CUDA graph has captured stays beyond
that, for as long as its tensors do. Such a graph goes on with what it has captured when a tensor changes.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from . import envs

Value = TypeVar("Value")

MOST_ENTRIES = 1 << 14
"""However small they are."""


def remembered(
    name: str,
    tensors: Sequence[Tensor],
    key: Hashable,
    make: Callable[[], Value],
    device: torch.device | None = None,
) -> Value:
    """Return the value of ``make()``, which is called only if it has not been for these tensors as they are now.

    Safe for threads and for streams: two threads that ask at once may both call ``make``, a value is complete before
    another stream gets it, and its memory outlives the work of every stream that got it.

    Args:
        name: of what is prepared, for error messages and so that nobody else has the same key.
        tensors: what the value is made from, all on one device. Their contents need not be part of the key.
        key: everything else that the value depends on: sizes, flags, contents of small tensors on the CPU as tuples.
        make: returns the value: a tensor, or a tuple of tensors, tuples and other things. Nothing of it may be one of
            ``tensors`` or share memory with them: it would keep them alive. It runs without gradients and makes
            ordinary tensors, under torch.inference_mode too.
        device: where the value lies; None means where ``tensors`` do.

    Raises:
        RuntimeError: a CUDA graph is being captured, and the value is not there.
        ValueError: CAD_FAST_REMEMBERED_BYTES is no number of bytes.
    """
    return _memory.get(name, tensors, key, make, device)


def remembered_output(name: str, tensors: Sequence[Tensor], key: Hashable, make: Callable[[], Tensor]) -> Tensor:
    """Return the value of ``make()`` as ``remembered``, for a tensor that is handed on to others.

    Weights and prompts are changed in ways that torch does not count: so their bits are added up in every call. To wait
    for the sum would hold up a GPU, where nothing is kept. Once somebody has written into the value, it is made anew in
    every call.
    """
    if any(tensor.device.type != "cpu" or tensor.is_inference() for tensor in tensors):
        return make()

    def with_version() -> tuple[Tensor, int]:
        value = make()
        return value, _version(value)

    value, version = remembered(name, tensors, (key, *map(_checksum, tensors)), with_version)
    return value if _version(value) == version else make()


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _checksum(tensor: Tensor) -> int:
    """The sum of a tensor's bits, taken as integers of its size; exact, whatever the order."""
    whole = tensor.detach().contiguous()
    if not whole.numel():
        return 0
    if whole.is_complex():
        whole = torch.view_as_real(whole)
    return int(whole.view(_INTEGERS[whole.element_size()]).sum(dtype=torch.int64))


def _version(value: Tensor) -> int:
    return 0 if value.is_inference() else value._version


def report() -> dict[str, Any]:
    """How much is kept, of how much, and how often something was found, made, put out for want of room, or too large.

    Where ``evicted`` or ``too_large`` grow with every call, CAD_FAST_REMEMBERED_BYTES is too little.
    """
    return {"limit": envs.get("CAD_FAST_REMEMBERED_BYTES"), **_memory.report()}


def forget() -> None:
    """Drop everything, but for what CUDA graphs have captured."""
    _memory.forget()


def limit() -> int:
    """How many bytes may be kept.

    Raises:
        ValueError: CAD_FAST_REMEMBERED_BYTES is no number of bytes.
    """
    given = envs.get("CAD_FAST_REMEMBERED_BYTES")
    if not given.isdecimal():
        raise ValueError(f"CAD_FAST_REMEMBERED_BYTES is {given!r}: expected a number of bytes, 0 to keep nothing")
    return int(given)


_State = tuple[int, int, torch.Size, tuple[int, ...]]
"""What differs once a tensor has changed: its version, address, shape and strides."""


def _state(tensor: Tensor) -> _State:
    return tensor._version, tensor.data_ptr(), tensor.shape, tensor.stride()


class _Entry:
    """A value, what it was made from, and who has used it."""

    __slots__ = ("captured", "nbytes", "place", "references", "states", "streams", "value")

    def __init__(self, place: Hashable, states: list[_State], value: Any, nbytes: int, stream: int | None) -> None:
        self.place, self.states, self.value, self.nbytes = place, states, value, nbytes
        self.references: list[weakref.ref[Tensor]] = []
        self.streams = {stream}
        """Those that its memory waits for when it is freed; the first is the one it was made in."""
        self.captured = False

    def is_of(self, tensors: Sequence[Tensor]) -> bool:
        # An id says nothing by itself: that of a tensor which is gone is soon another's.
        for reference, tensor, state in zip(self.references, tensors, self.states, strict=True):
            if reference() is not tensor or _state(tensor) != state:
                return False
        return True


class Memory:
    """What is kept; the process has one."""

    def __init__(self, limit: Callable[[], int] = limit, most: int = MOST_ENTRIES) -> None:
        self._limit, self._most = limit, most
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._captured: set[_Entry] = set()
        """Among them some whose place in ``_entries`` another has taken."""
        self._owners: dict[int, _Entry] = {}
        """By the id of each of their references."""
        self._gone: deque[weakref.ref[Tensor]] = deque()
        self._lock = threading.Lock()
        self._counts = {"found": 0, "prepared": 0, "evicted": 0, "too_large": 0}

    def get(
        self,
        name: str,
        tensors: Sequence[Tensor],
        key: Hashable,
        make: Callable[[], Value],
        device: torch.device | None = None,
    ) -> Value:
        """See ``remembered``."""
        device = tensors[0].device if device is None else device
        stream, capturing = _stream_of(device)
        place = (name, key, device, *map(id, tensors))
        with self._lock:
            entry = self._entries.get(place)
            if entry is not None and entry.is_of(tensors):
                self._entries.move_to_end(place)
                self._counts["found"] += 1
                if capturing or stream not in entry.streams:
                    self._use(entry, device, stream, capturing)
                return entry.value
        if any(tensor.is_inference() for tensor in tensors):
            if capturing:
                raise RuntimeError(
                    f"{name} cannot be captured in a CUDA graph with tensors made under torch.inference_mode, which it "
                    "prepares in every call: give it clones that were made outside of it"
                )
            return make()
        states = [*map(_state, tensors)]
        if capturing:
            raise RuntimeError(
                f"{name} has prepared nothing for these tensors as they are now, and cannot while a CUDA graph is "
                "captured: call it once with the same tensors before (CAD_FAST_REMEMBERED_BYTES must hold the result)"
            )
        with torch.inference_mode(False), torch.no_grad():
            value = make()
        storages = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        if any(t.numel() and t.untyped_storage().data_ptr() in storages for t in tensors_of(value)):
            raise ValueError(f"what {name} prepared shares memory with what it was made from, and would keep it alive")
        self._put(_Entry(place, states, value, sum(t.nbytes for t in tensors_of(value)), stream), tensors, device)
        return value

    def report(self) -> dict[str, Any]:
        """See the function of this name."""
        with self._lock:
            sizes = {id(entry): entry.nbytes for entry in (*self._entries.values(), *self._captured)}
            return {
                "entries": len(sizes),
                "bytes": sum(sizes.values()),
                "captured": len(self._captured),
                **self._counts,
            }

    def forget(self) -> None:
        """See the function of this name."""
        with self._lock:
            for entry in [*self._entries.values()]:
                self._displace(entry)
        self._sweep()

    def _use(self, entry: _Entry, device: torch.device, stream: int | None, capturing: bool) -> None:
        if stream not in entry.streams:
            for tensor in tensors_of(entry.value):
                tensor.record_stream(torch.cuda.current_stream(device))
            entry.streams.add(stream)
        if capturing and not entry.captured:
            entry.captured = True
            self._captured.add(entry)

    def _put(self, entry: _Entry, tensors: Sequence[Tensor], device: torch.device) -> None:
        limit = self._limit()
        if device.type == "cuda" and entry.nbytes:
            # Once, so that no stream need ever wait for another: that could not be captured.
            torch.cuda.current_stream(device).synchronize()
        with self._lock:
            self._counts["prepared"] += 1
            if entry.nbytes > limit or limit == 0:
                self._counts["too_large"] += 1
                return
            if entry.place in self._entries:
                self._displace(self._entries[entry.place])
            self._entries[entry.place] = entry
            entry.references = [weakref.ref(tensor, self._went) for tensor in tensors]
            self._owners.update((id(reference), entry) for reference in entry.references)
            self._evict(limit)
        self._sweep()

    def _evict(self, limit: int) -> None:
        evictable = [entry for entry in self._entries.values() if not entry.captured]
        nbytes, count = sum(entry.nbytes for entry in evictable), len(evictable)
        for entry in evictable:
            if nbytes <= limit and count <= self._most:
                break
            self._displace(entry)
            nbytes, count = nbytes - entry.nbytes, count - 1
            self._counts["evicted"] += 1

    def _displace(self, entry: _Entry) -> None:
        """Find it no more; it goes, unless it was captured."""
        if self._entries.get(entry.place) is entry:
            del self._entries[entry.place]
        if not entry.captured:
            for reference in entry.references:
                del self._owners[id(reference)]

    def _went(self, reference: weakref.ref[Tensor]) -> None:
        self._gone.append(reference)
        self._sweep()

    def _sweep(self) -> None:
        """Drop what was made from tensors that are gone.

        A tensor may go at any time, in the midst of the methods above too. Whoever has the lock then sweeps after it.
        """
        while self._gone and self._lock.acquire(blocking=False):
            try:
                while self._gone:
                    entry = self._owners.get(id(reference := self._gone.popleft()))
                    # The id may be another's by now, if this was the reference of an entry that has been dropped.
                    if entry is not None and any(one is reference for one in entry.references):
                        entry.captured = False
                        self._captured.discard(entry)
                        self._displace(entry)
            finally:
                self._lock.release()


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors in a value."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from tensors_of(part)


def _stream_of(device: torch.device) -> tuple[int | None, bool]:
    """The current stream of a device, and whether a CUDA graph is being captured."""
    if device.type != "cuda":
        return None, False
    # As Triton asks for it: torch.cuda.current_stream takes ten times as long, and this runs in every call.
    return torch._C._cuda_getCurrentRawStream(device.index), torch.cuda.is_current_stream_capturing()


_memory = Memory()
