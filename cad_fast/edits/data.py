"""What an edit is: sets of components, with a factor for their weights. Files, weights and rows know this alone."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ..components.module_components import ModuleComponents, numbered
from ..components.space import ComponentSpace

AnyEdit = TypeVar("AnyEdit", bound="EditData")


class Described(Protocol):
    """What says as JSON what it is: a ``Comparison``, or the settings of an ``Evaluation``."""

    def to_dict(self) -> dict[str, Any]: ...


class Evaluated(Protocol):
    """What evaluations have that edits need of them."""

    @property
    def settings(self) -> Described: ...


@dataclass(eq=False)
class EditData:
    """``components`` {module: sorted int64 [k]} whose weights are multiplied by ``factor``; numbered in each module.

    ``space`` describes the modules and carries the fingerprint of the model the edit was made for. ``provenance`` is
    JSON-able: concept, objective, method, selection, evaluation.
    """

    name: str
    space: ComponentSpace
    components: dict[str, Tensor]
    factor: float = 0.0
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_edit_name(self.name)
        if not math.isfinite(self.factor):
            raise ValueError(f"edit {self.name!r}: factor is {self.factor}, expected a finite number")
        self.factor = float(self.factor)  # 0 and 0.0 are one edit, with one digest
        entries = {entry.module: entry for entry in self.space}
        for module, indices in self.components.items():
            if module not in entries:
                raise ValueError(f"edit {self.name!r}: module {module!r} is not among its modules")
            _check_indices(self.name, entries[module], indices)
        used = [module for module in entries if module in self.components]
        if not used:
            raise ValueError(f"edit {self.name!r} edits nothing")
        self.space = self.space.restrict(used)
        self.components = {module: self.components[module] for module in used}
        for module, first in self.space.shared().items():
            if not torch.equal(self.components[module], self.components[first]):
                raise ValueError(
                    f"edit {self.name!r}: {module!r} has a share of the heads of {first!r}, but other heads are edited"
                )

    @classmethod
    def from_indices(
        cls: type[AnyEdit],
        name: str,
        space: ComponentSpace,
        indices: Tensor,
        factor: float = 0.0,
        provenance: dict[str, Any] | None = None,
    ) -> AnyEdit:
        """Make an edit of ``indices`` int64 [k], sorted and without repetition: component numbers over ``space``."""
        return cls(name, space, space.split_indices(indices), factor, provenance or {})

    @property
    def n_components(self) -> int:
        return sum(len(self.components[entry.module]) for entry in self.space.leading)

    def weight_indices(self) -> dict[str, Tensor]:
        """Flat indices into each module's weight, {module: sorted int64 [k]}."""
        return {entry.module: entry.weight_indices(self.components[entry.module]) for entry in self.space}

    @property
    def n_weights(self) -> int:
        return sum(entry.weights_each * len(self.components[entry.module]) for entry in self.space)

    def digest(self) -> str:
        """SHA-256 over all that decides which weights change, and by how much.

        It covers the factor, the kind, and per module its name, its weight's shape, how wide a component is, and which
        components are edited. It does not cover the name of the edit, the model's fingerprint or the provenance.
        """
        digest = hashlib.sha256(f"{self.space.kind} {self.factor!r}".encode())
        for entry in sorted(self.space, key=lambda entry: entry.module):
            shape = "x".join(map(str, entry.weight_shape))
            span = "" if entry.span is None else f" {entry.span[0]}:{entry.span[1]}"
            digest.update(f"\n{entry.module} {shape} {entry.block}{span}\n".encode())
            digest.update(self.components[entry.module].to(torch.int64).numpy().tobytes())
        return digest.hexdigest()

    def __repr__(self) -> str:
        size = f"{self.n_components} of kind {self.space.kind} in {len(self.components)} modules"
        return f"{type(self).__name__}({self.name!r}, {size}, factor {self.factor:g})"

    def __eq__(self, other: object) -> bool:
        """Whether both do the same to the same model under the same name; the provenance does not count."""
        if not isinstance(other, EditData):
            return NotImplemented
        same_model = self.space.fingerprint == other.space.fingerprint
        return self.name == other.name and same_model and self.digest() == other.digest()

    def __hash__(self) -> int:
        return hash((self.name, self.digest()))

    def to_weights(self: AnyEdit) -> AnyEdit:
        """The same edit as an edit of single weights."""
        if self.space.kind == "weight":
            return self
        weights = [replace(entry, kind="weight", block=1, span=None) for entry in self.space]
        space = ComponentSpace(numbered(weights, {}), self.space.fingerprint)
        return type(self)(self.name, space, self.weight_indices(), self.factor, self.provenance)

    def evaluated(self: AnyEdit, comparison: Described, evaluation: Evaluated | None = None) -> AnyEdit:
        """The same edit with ``comparison`` (see ``evaluation.compare``) in its provenance, under ``evaluation``.

        Args:
            comparison: what the edit did, from ``evaluation.compare``.
            evaluation: the ``Evaluation`` after the edit, whose settings are then recorded as well, so that
                ``cad-fast edit verify`` can repeat it.

        Raises:
            ValueError: they are of another edit.
        """
        record = comparison.to_dict()
        if record["edit"] != self.name:
            raise ValueError(f"the comparison is of edit {record['edit']!r}, not of {self.name!r}")
        if evaluation is not None:
            settings = evaluation.settings.to_dict()
            if settings["edit"] != self.name:
                raise ValueError(f"the evaluation is of edit {settings['edit']!r}, not of {self.name!r}")
            record["settings"] = {key: value for key, value in settings.items() if key != "fingerprint"}
        return replace(self, provenance={**self.provenance, "evaluation": record})


def check_edit_name(name: Any) -> str:
    """``name``. Raises ValueError unless it is 1-64 of A-Z a-z 0-9 . _ -, starting with a letter or digit."""
    ok = isinstance(name, str) and 0 < len(name) <= 64 and name[0].isalnum() and name.isascii()
    if not ok or not all(char.isalnum() or char in "._-" for char in name):
        raise ValueError(f"edit name {name!r}: expected 1-64 of A-Z a-z 0-9 . _ -, starting with a letter or digit")
    return name


def _check_indices(name: str, entry: ModuleComponents, indices: Tensor) -> None:
    where = f"edit {name!r}, components of {entry.module!r}"
    if indices.ndim != 1 or indices.dtype != torch.int64 or len(indices) == 0:
        raise ValueError(f"{where}: expected int64 of shape [k], k > 0; got {indices.dtype} {list(indices.shape)}")
    if len(indices) > 1 and not bool((indices[1:] > indices[:-1]).all()):
        raise ValueError(f"{where}: not sorted, or with repetitions")
    if int(indices[0]) < 0 or int(indices[-1]) >= entry.count:
        raise ValueError(f"{where}: {int(indices[0])}..{int(indices[-1])} is outside 0..{entry.count - 1}")
