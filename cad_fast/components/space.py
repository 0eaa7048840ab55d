"""Which components a denoiser has: weights, neurons, filters or heads of chosen modules, numbered in a fixed order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..choices import KINDS, Kind
from ..diffusion.denoisers import denoiser_of
from ..diffusion.layers import match_modules, presets_of
from ..diffusion.structure import Layer, LayerRole, base_modules, layer_roles
from .fingerprint import Fingerprint
from .module_components import ModuleComponents, numbered

DEFAULT_TARGETS: dict[Kind, str] = {
    "weight": "feed-forward",
    "neuron": "feed-forward",
    "filter": "convolution",
    "head": "attention",
}


class ComponentSpace:
    """All components of one kind in the chosen modules of one denoiser, numbered 0..n-1 in a fixed order.

    One head of a joint attention has its share in two modules, the picture's output and the text's. Both entries then
    have the same offset and count: what ablates the one ablates the other.
    """

    def __init__(self, entries: Sequence[ModuleComponents], fingerprint: Fingerprint) -> None:
        self.entries = tuple(entries)
        self.fingerprint = fingerprint
        if not self.entries:
            raise ValueError("a component space needs at least one module")
        expected = 0
        first: dict[int, ModuleComponents] = {}
        for entry in self.entries:
            if entry.kind != self.entries[0].kind:
                raise ValueError(f"the components of {entry.module!r} are of kind {entry.kind}, expected one kind")
            same = first.setdefault(entry.offset, entry)
            if same is not entry:
                if entry.count != same.count or entry.kind != "head":
                    raise ValueError(f"the components of {entry.module!r} are numbered as those of {same.module!r}")
                continue
            if entry.offset != expected:
                raise ValueError(f"the components of {entry.module!r} start at {entry.offset}, expected {expected}")
            expected += entry.count
        self.n = expected
        self.leading = tuple(first.values())
        """The entries without those that share the components of one before: every component once."""
        self._offsets = torch.tensor([entry.offset for entry in self.leading])

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
        roles = layer_roles(denoiser)
        target_modules = DEFAULT_TARGETS[kind] if target_modules is None else target_modules
        matched = match_modules(denoiser, target_modules, roles)
        entries = []
        for name, module in matched.items():
            entry = _components_of(name, module, kind, roles[name])
            if entry is not None:
                entries.append(entry)
        if not entries:
            raise ValueError(_no_components(kind, target_modules, matched, roles))
        # A head whose share in the picture's output was not asked for is what its share in the text's output is.
        shared = {name: roles[name].with_heads_of or name for name in matched} if kind == "head" else {}
        return cls(numbered(entries, shared), Fingerprint.of(denoiser))

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
        entry = self.leading[int(torch.searchsorted(self._offsets, component, right=True)) - 1]
        return entry.label(component - entry.offset)

    def split(self, values: Tensor) -> dict[str, Tensor]:
        """A tensor [n, ...] over all components as views per module, {module: [count, ...]}."""
        if len(values) != self.n:
            raise ValueError(f"values has {len(values)} rows, expected one per component: {self.n}")
        return {entry.module: values[entry.offset : entry.offset + entry.count] for entry in self.entries}

    def split_indices(self, components: Tensor) -> dict[str, Tensor]:
        """Sorted component numbers int64 [k] as numbers within each module that has any, {module: [k_m]}."""
        bounds = torch.tensor([[entry.offset, entry.offset + entry.count] for entry in self.entries])
        cuts = torch.searchsorted(components, bounds)
        parts = {}
        for entry, (low, high) in zip(self.entries, cuts.tolist(), strict=True):
            if high > low:
                parts[entry.module] = components[low:high] - entry.offset
        return parts

    def shared(self) -> dict[str, str]:
        """{module: the first module that has the same components}, for every module."""
        first = {entry.offset: entry.module for entry in reversed(self.entries)}
        return {entry.module: first[entry.offset] for entry in self.entries}

    def restrict(self, modules: Sequence[str]) -> ComponentSpace:
        """The space of the named modules only, renumbered."""
        wanted = set(modules)
        entries = [entry for entry in self.entries if entry.module in wanted]
        return ComponentSpace(numbered(entries, self.shared()), self.fingerprint)

    def ranges(self, modules: Sequence[str]) -> list[slice]:
        """Which components the named modules have, in the order of ``restrict``, each once."""
        wanted = set(modules)
        offsets = dict.fromkeys((e.offset, e.count) for e in self.entries if e.module in wanted)
        return [slice(offset, offset + count) for offset, count in offsets]

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
        return {"entries": [entry.to_dict() for entry in self.entries], "fingerprint": self.fingerprint.to_dict()}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> ComponentSpace:
        """Raises ValueError naming what is damaged."""
        if not isinstance(value.get("entries"), list) or not isinstance(value.get("fingerprint"), dict):
            raise ValueError("damaged component space: expected 'entries' and 'fingerprint'")
        entries = [ModuleComponents.from_dict(entry) for entry in value["entries"]]
        return cls(entries, Fingerprint.from_dict(value["fingerprint"]))


def _components_of(name: str, module: Layer, kind: Kind, role: LayerRole) -> ModuleComponents | None:
    """The module's components, not yet numbered; None when it has none of this kind."""
    block, columns = 1, None
    if kind == "filter" and not isinstance(module, nn.Conv2d):
        return None
    if kind in ("neuron", "head"):
        columns = role.hidden if kind == "neuron" else role.heads
        if columns is None or not isinstance(module, nn.Linear):
            return None
        block = 1 if kind == "neuron" else role.head_width
    span = None if columns == (0, module.weight.shape[1]) else columns
    return ModuleComponents(name, kind, tuple(module.weight.shape), block, 0, span, presets_of(role, module))


def _no_components(kind: Kind, target: Any, matched: Mapping[str, Layer], roles: Mapping[str, LayerRole]) -> str:
    """Why none of the matched modules has components of this kind, and which modules of the denoiser have some."""
    having = {
        "neuron": lambda name: roles[name].hidden is not None,
        "head": lambda name: roles[name].heads is not None,
    }.get(kind)
    text = f"none of the {len(matched)} modules matching {target!r} has components of kind {kind!r}"
    if having is None:
        return text
    some = [name for name in roles if having(name)]
    if kind == "neuron" and any(isinstance(matched.get(name), nn.Conv2d) for name in some):
        return f"{text}: its feed-forwards are convolutions, whose hidden units are filters: use kind='filter'"
    there = f"{len(some)} modules have some, such as {some[0]}" if some else "no module of this denoiser has any"
    return f"{text}; {there}"
