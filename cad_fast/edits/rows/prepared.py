"""Edits made ready to run: the weights that they edit as flat indices, alone and composed with others."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data import EditData


@dataclass(frozen=True, eq=False)
class PreparedEdit:
    """An edit as single weights: {module: flat indices, int64 [k], ascending}, all times one factor."""

    factor: float
    indices: dict[str, Tensor]

    @classmethod
    def of(cls, edit: EditData) -> PreparedEdit:
        return cls(edit.factor, edit.weight_indices())

    @property
    def nbytes(self) -> int:
        return sum(indices.nbytes for indices in self.indices.values())

    def factor_at(self, strength: float) -> float:
        """What the weights are multiplied by at this strength; a removed weight's is +0.0."""
        return 1.0 - strength * (1.0 - self.factor) or 0.0


@dataclass(frozen=True, eq=False)
class Composition:
    """Several edits at their strengths as one: {module: (flat indices int64 [k], ascending; factors float32 [k])}."""

    entries: dict[str, tuple[Tensor, Tensor]]

    @property
    def nbytes(self) -> int:
        return sum(indices.nbytes + factors.nbytes for indices, factors in self.entries.values())


def composed(parts: Sequence[tuple[PreparedEdit, float]]) -> Composition:
    """The edits at their strengths together: a weight is multiplied by the factor of every edit that names it.

    A weight that one of them removes is removed, whatever the others would do with it. The products are of float64,
    in the order of ``parts``: give them in one order and the result is the same to the last bit.
    """
    if len(parts) == 1:
        edit, strength = parts[0]
        factor = edit.factor_at(strength)
        # One tensor of the longest, and views of it, since filling is dearer than slicing.
        longest = max(map(len, edit.indices.values()))
        factors = torch.full((longest,), factor, dtype=torch.float32)
        return Composition({module: (indices, factors[: len(indices)]) for module, indices in edit.indices.items()})
    entries = {}
    for module in dict.fromkeys(module for edit, _ in parts for module in edit.indices):
        own = [(edit.indices[module], edit.factor_at(s)) for edit, s in parts if module in edit.indices]
        union = torch.cat([indices for indices, _ in own]).unique(sorted=True)
        factors = torch.ones(len(union), dtype=torch.float64)
        for indices, factor in own:
            factors[torch.searchsorted(union, indices)] *= factor
        entries[module] = (union, factors.add_(0.0).float())  # -0.0 + 0.0 is 0.0
    return Composition(entries)


class ByteCache:
    """The most recently used values, as many as fit in ``limit`` bytes (the newest always); safe for threads."""

    def __init__(self, limit: int) -> None:
        self.limit, self.nbytes = limit, 0
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Any], size: Callable[[Any], int]) -> Any:
        """The value of ``key``, from ``make()`` if it is not here; ``size(value)`` in bytes."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key][0]
        value = make()
        with self._lock:
            self._drop(key)
            self._values[key] = (value, size(value))
            self.nbytes += self._values[key][1]
            while self.nbytes > self.limit and len(self._values) > 1:
                self._drop(next(iter(self._values)))
        return value

    def drop(self, wanted: Callable[[Hashable], bool]) -> None:
        """Forget the values whose key is ``wanted``."""
        with self._lock:
            for key in [key for key in self._values if wanted(key)]:
                self._drop(key)

    def clear(self) -> None:
        """Forget everything."""
        self.drop(lambda _: True)

    def _drop(self, key: Hashable) -> None:
        if key in self._values:
            self.nbytes -= self._values.pop(key)[1]

    def __len__(self) -> int:
        return len(self._values)
