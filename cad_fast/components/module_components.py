"""The components of one module: which of its weights belong to which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..choices import KINDS, Kind


@dataclass(frozen=True)
class ModuleComponents:
    """The components of one module: ``count`` of them, numbered from ``offset``.

    The weight, seen as a matrix [rows, columns] (a filter's weights flattened), holds them as single elements (kind
    weight), as rows (filter) or as blocks of ``block`` columns (neuron: 1, head: the head's width).

    Attributes:
        module: its path in the denoiser.
        kind: of the components.
        weight_shape: of the module's weight.
        block: the columns of one component.
        offset: the number of the first component in its space.
        span: the columns [first, last) that have components, where not all have: the output matrix of a single-stream
            block reads heads by some of its columns and neurons by the others. None for all.
        presets: the presets that the module is in (see ``diffusion.layers``), as the denoiser's structure tells.
    """

    module: str
    kind: Kind
    weight_shape: tuple[int, ...]
    block: int
    offset: int
    span: tuple[int, int] | None = None
    presets: tuple[str, ...] = field(default=(), compare=False)

    @property
    def rows(self) -> int:
        return self.weight_shape[0]

    @property
    def columns(self) -> int:
        return torch.Size(self.weight_shape[1:]).numel()

    @property
    def used_columns(self) -> tuple[int, int]:
        """The columns [first, last) that have components."""
        return self.span or (0, self.columns)

    @property
    def count(self) -> int:
        if self.kind == "weight":
            return self.rows * self.columns
        first, last = self.used_columns
        return self.rows if self.kind == "filter" else (last - first) // self.block

    @property
    def weights_each(self) -> int:
        """How many weights one component has."""
        if self.kind == "weight":
            return 1
        return self.columns if self.kind == "filter" else self.rows * self.block

    def weight_indices(self, components: Tensor) -> Tensor:
        """Flat indices int64 into the weight, of the module's components int64 [k] (numbered from 0 in the module)."""
        if self.kind == "weight":
            return components
        if self.kind == "filter":
            return (components[:, None] * self.columns + torch.arange(self.columns)).flatten()
        columns = (components[:, None] * self.block + torch.arange(self.block)).flatten() + self.used_columns[0]
        return (columns[:, None] + self.columns * torch.arange(self.rows)).flatten().sort().values

    def reduce(self, per_weight: Tensor) -> Tensor:
        """Sums over each component's weights: [*weight_shape] -> [count]."""
        if self.kind == "weight":
            return per_weight.flatten()
        matrix = per_weight.reshape(self.rows, self.columns)
        if self.kind == "filter":
            return matrix.sum(1)
        first, last = self.used_columns
        return matrix.sum(0)[first:last].view(self.count, self.block).sum(1)

    def per_column(self, values: Tensor, others: float) -> Tensor:
        """The value of each column, [..., columns], from those of neurons or heads [..., count].

        Columns without a component have ``others``.
        """
        wide = values.repeat_interleave(self.block, -1)
        if self.span is None:
            return wide
        return functional.pad(wide, (self.span[0], self.columns - self.span[1]), value=others)

    def label(self, component: int) -> str:
        """A name for one component of this module, such as ``mid_block.(...).to_k.weight[3, 17]``."""
        if self.kind == "weight":
            place = torch.unravel_index(torch.tensor(component), self.weight_shape)
            return f"{self.module}.weight[{', '.join(str(int(i)) for i in place)}]"
        return f"{self.module} {self.kind} {component}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON; what is as in most modules is left out."""
        value = {**asdict(self), "weight_shape": list(self.weight_shape), "presets": list(self.presets)}
        if self.span is None:
            del value["span"]
        else:
            value["span"] = list(self.span)
        return value

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> ModuleComponents:
        """Raises ValueError when ``value`` does not describe the components of a module."""
        try:
            shape = tuple(int(side) for side in value["weight_shape"])
            span, presets = value.get("span"), value.get("presets", [])
            entry = cls(
                str(value["module"]),
                value["kind"],
                shape,
                int(value["block"]),
                int(value["offset"]),
                None if span is None else checked_span(span, shape, int(value["block"])),
                tuple(str(preset) for preset in presets),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"damaged component description: {error!r}") from error
        if entry.kind not in KINDS or len(shape) not in (2, 4) or min(shape) < 1 or entry.offset < 0:
            raise ValueError(f"damaged component description of {entry.module!r}: {value}")
        if entry.block < 1 or (entry.span is None and entry.columns % entry.block):
            raise ValueError(f"damaged component description of {entry.module!r}: block {entry.block} of {shape}")
        if entry.span is not None and entry.kind not in ("neuron", "head"):
            raise ValueError(f"damaged component description of {entry.module!r}: a span of kind {entry.kind}")
        return entry


def checked_span(span: Any, shape: tuple[int, ...], block: int) -> tuple[int, int]:
    """``span`` as two columns of a weight of ``shape``, a whole number of blocks. Raises ValueError."""
    columns = torch.Size(shape[1:]).numel()
    numbers = isinstance(span, (list, tuple)) and len(span) == 2 and all(type(number) is int for number in span)
    if not numbers or not 0 <= span[0] < span[1] <= columns or block < 1 or (span[1] - span[0]) % block:
        raise ValueError(f"'span' is {span!r}, expected two of the {columns} columns, a multiple of {block} apart")
    return int(span[0]), int(span[1])


def numbered(entries: Iterable[ModuleComponents], shared: Mapping[str, str]) -> list[ModuleComponents]:
    """``entries`` with offsets one after the other.

    Args:
        entries: of one space, in its order.
        shared: {module: module whose components it has a share of}. Both have the same numbers.
    """
    result, offsets, total = [], {}, 0
    for entry in entries:
        of = shared.get(entry.module, entry.module)
        if of not in offsets:
            offsets[of] = total
            total += entry.count
        result.append(replace(entry, offset=offsets[of]))
    return result
