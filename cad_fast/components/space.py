"""Which components a denoiser has: weights, neurons, filters or heads of chosen modules, numbered in a fixed order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..choices import KINDS, Kind
from ..diffusion.denoisers import denoiser_of
from ..diffusion.layers import Layer, base_modules, match_modules
from .fingerprint import Fingerprint

DEFAULT_TARGETS: dict[Kind, str] = {
    "weight": "feed-forward",
    "neuron": "feed-forward",
    "filter": "convolution",
    "head": "attention",
}


@dataclass(frozen=True)
class ModuleComponents:
    """The components of one module: ``count`` of them, numbered from ``offset``.

    The weight, seen as a matrix [rows, columns] (a filter's weights flattened), holds them as single elements (kind
    weight), as rows (filter) or as blocks of ``block`` columns (neuron: 1, head: the head's width).
    """

    module: str
    kind: Kind
    weight_shape: tuple[int, ...]
    block: int
    offset: int

    @property
    def rows(self) -> int:
        return self.weight_shape[0]

    @property
    def columns(self) -> int:
        return torch.Size(self.weight_shape[1:]).numel()

    @property
    def count(self) -> int:
        if self.kind == "weight":
            return self.rows * self.columns
        return self.rows if self.kind == "filter" else self.columns // self.block

    @property
    def weights_each(self) -> int:
        """How many weights one component has."""
        return self.rows * self.columns // self.count

    def weight_indices(self, components: Tensor) -> Tensor:
        """Flat indices int64 into the weight, of the module's components int64 [k] (numbered from 0 in the module)."""
        if self.kind == "weight":
            return components
        if self.kind == "filter":
            return (components[:, None] * self.columns + torch.arange(self.columns)).flatten()
        columns = (components[:, None] * self.block + torch.arange(self.block)).flatten()
        return (columns[:, None] + self.columns * torch.arange(self.rows)).flatten().sort().values

    def reduce(self, per_weight: Tensor) -> Tensor:
        """Sums over each component's weights: [*weight_shape] -> [count]."""
        if self.kind == "weight":
            return per_weight.flatten()
        matrix = per_weight.reshape(self.rows, self.columns)
        if self.kind == "filter":
            return matrix.sum(1)
        return matrix.sum(0).view(self.count, self.block).sum(1)

    def label(self, component: int) -> str:
        """A name for one component of this module, such as ``mid_block.(...).to_k.weight[3, 17]``."""
        if self.kind == "weight":
            place = torch.unravel_index(torch.tensor(component), self.weight_shape)
            return f"{self.module}.weight[{', '.join(str(int(i)) for i in place)}]"
        return f"{self.module} {self.kind} {component}"

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> ModuleComponents:
        """Raises ValueError when ``value`` does not describe the components of a module."""
        try:
            shape = tuple(int(side) for side in value["weight_shape"])
            entry = cls(str(value["module"]), value["kind"], shape, int(value["block"]), int(value["offset"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"damaged component description: {error!r}") from error
        if entry.kind not in KINDS or len(shape) not in (2, 4) or min(shape) < 1 or entry.offset < 0:
            raise ValueError(f"damaged component description of {entry.module!r}: {value}")
        if entry.block < 1 or entry.columns % entry.block:
            raise ValueError(f"damaged component description of {entry.module!r}: block {entry.block} of {shape}")
        return entry


class ComponentSpace:
    """All components of one kind in the chosen modules of one denoiser, numbered 0..n-1 in a fixed order."""

    def __init__(self, entries: Sequence[ModuleComponents], fingerprint: Fingerprint) -> None:
        self.entries = tuple(entries)
        self.fingerprint = fingerprint
        if not self.entries:
            raise ValueError("a component space needs at least one module")
        expected = 0
        for entry in self.entries:
            if entry.offset != expected or entry.kind != self.entries[0].kind:
                raise ValueError(f"the components of {entry.module!r} start at {entry.offset}, expected {expected}")
            expected += entry.count
        self.n = expected
        self._offsets = torch.tensor([entry.offset for entry in self.entries])

    @classmethod
    def of(
        cls, denoiser: Any, kind: Kind = "weight", target_modules: str | Sequence[str] | None = None
    ) -> ComponentSpace:
        """The components of ``kind`` in ``target_modules`` (see ``match_modules``) of a denoiser or its pipeline.

        weight: every element of the weights (default: the feed-forward linears, as in arXiv 2412.02542);
        neuron: a hidden unit of a feed-forward layer, that is a column of its output linear;
        filter: an output channel of a convolution's weight (its bias stays);
        head: an attention head, that is a block of columns of the attention's output linear.
        Raises ValueError when nothing matches or the matched modules have no such components.
        """
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r}: expected one of {', '.join(KINDS)}")
        denoiser = denoiser_of(denoiser)
        matched = match_modules(denoiser, DEFAULT_TARGETS[kind] if target_modules is None else target_modules)
        entries: list[ModuleComponents] = []
        offset = 0
        for name, module in matched.items():
            block = _block_width(denoiser, name, module, kind)
            if block is None:
                continue
            entries.append(ModuleComponents(name, kind, tuple(module.weight.shape), block, offset))
            offset += entries[-1].count
        if not entries:
            raise ValueError(
                f"none of the {len(matched)} modules matching {target_modules!r} has components of kind {kind!r}"
            )
        return cls(entries, Fingerprint.of(denoiser))

    @property
    def kind(self) -> Kind:
        return self.entries[0].kind

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[ModuleComponents]:
        return iter(self.entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ComponentSpace) and self.entries == other.entries

    def __hash__(self) -> int:
        return hash(self.entries)

    def __repr__(self) -> str:
        return f"ComponentSpace({self.n} of kind {self.kind} in {len(self.entries)} modules)"

    def label(self, component: int) -> str:
        """The name of one component. Raises IndexError outside 0..n-1."""
        if not 0 <= component < self.n:
            raise IndexError(f"component {component} is outside 0..{self.n - 1}")
        entry = self.entries[int(torch.searchsorted(self._offsets, component, right=True)) - 1]
        return entry.label(component - entry.offset)

    def split(self, values: Tensor) -> dict[str, Tensor]:
        """A tensor [n, ...] over all components as views per module, {module: [count, ...]}."""
        if len(values) != self.n:
            raise ValueError(f"values has {len(values)} rows, expected one per component: {self.n}")
        return {entry.module: values[entry.offset : entry.offset + entry.count] for entry in self.entries}

    def split_indices(self, components: Tensor) -> dict[str, Tensor]:
        """Sorted component numbers int64 [k] as numbers within each module that has any, {module: [k_m]}."""
        bounds = torch.cat([self._offsets, torch.tensor([self.n])])
        cuts = torch.searchsorted(components, bounds)
        parts = {}
        for entry, low, high in zip(self.entries, cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
            if high > low:
                parts[entry.module] = components[low:high] - entry.offset
        return parts

    def restrict(self, modules: Sequence[str]) -> ComponentSpace:
        """The space of the named modules only, renumbered."""
        entries, offset = [], 0
        for entry in self.entries:
            if entry.module in set(modules):
                entries.append(replace(entry, offset=offset))
                offset += entry.count
        return ComponentSpace(entries, self.fingerprint)

    def modules(self, denoiser: Any) -> dict[str, Layer]:
        """The space's modules in ``denoiser``, {name: module}.

        Raises ValueError naming the module that is missing or has another weight shape.
        """
        present = base_modules(denoiser_of(denoiser))
        for entry in self.entries:
            module = present.get(entry.module)
            if module is None:
                raise ValueError(f"the denoiser has no module {entry.module!r}")
            if tuple(module.weight.shape) != entry.weight_shape:
                raise ValueError(
                    f"{entry.module}.weight has shape {list(module.weight.shape)}, expected {list(entry.weight_shape)}"
                )
        return {entry.module: present[entry.module] for entry in self.entries}

    def to_dict(self) -> dict[str, Any]:
        entries = [{**asdict(entry), "weight_shape": list(entry.weight_shape)} for entry in self.entries]
        return {"entries": entries, "fingerprint": self.fingerprint.to_dict()}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> ComponentSpace:
        """Raises ValueError naming what is damaged."""
        if not isinstance(value.get("entries"), list) or not isinstance(value.get("fingerprint"), dict):
            raise ValueError("damaged component space: expected 'entries' and 'fingerprint'")
        entries = [ModuleComponents.from_dict(entry) for entry in value["entries"]]
        return cls(entries, Fingerprint.from_dict(value["fingerprint"]))


def _block_width(denoiser: nn.Module, name: str, module: nn.Module, kind: Kind) -> int | None:
    """The width of a component in columns of ``module``; None when the module has no components of ``kind``."""
    if kind == "weight":
        return 1
    if kind == "filter":
        return 1 if isinstance(module, nn.Conv2d) else None
    if not isinstance(module, nn.Linear):
        return None
    parent_name, _, last = name.rpartition(".")
    if kind == "neuron":
        # A feed-forward layer keeps its linears in a list `net`; the last one reads the hidden units.
        container = _submodule(denoiser, parent_name)
        return (
            1
            if isinstance(container, nn.ModuleList) and len(container) > 1 and last == str(len(container) - 1)
            else None
        )
    attention_name = parent_name.removesuffix(".to_out") if last == "0" else parent_name
    if not (last == "to_add_out" or parent_name.endswith(".to_out")):
        return None
    heads = getattr(_submodule(denoiser, attention_name), "heads", None)
    return module.in_features // heads if isinstance(heads, int) and module.in_features % heads == 0 else None


def _submodule(denoiser: nn.Module, name: str) -> nn.Module | None:
    try:
        return denoiser.get_submodule(name)
    except AttributeError:
        return None
