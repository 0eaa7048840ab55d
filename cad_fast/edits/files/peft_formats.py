"""The formats in which PEFT stores changes of single weights: SHiRA and Super-Tuning, each by its name.

Both have as many values in a module as one number says that holds for all modules: an edit fills up with zeros.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..data import EditData


class SparseFormat(ABC):
    """How one kind of adapter names, counts and places its values."""

    name: ClassVar[str]
    title: ClassVar[str]
    peft_type: ClassVar[str]
    config_class: ClassVar[str]
    values: ClassVar[str]
    """The end of the name of a module's values [k]."""
    places: ClassVar[str]
    """The end of the name of their places."""

    @abstractmethod
    def size(self, edit: EditData, counts: Mapping[str, int]) -> dict[str, Any]:
        """The least size, as arguments of the config, with room for so many weights of every module.

        Raises ValueError naming the module and what has no room.
        """

    @abstractmethod
    def room(self, config: Mapping[str, Any], shape: tuple[int, ...]) -> int:
        """How many values a weight of this shape has in an adapter with this config."""

    @abstractmethod
    def stored(self, flat: Tensor, columns: int) -> Tensor:
        """Flat places int64 [k] as the format stores them, int32."""

    @abstractmethod
    def flat(self, stored: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        """Stored places as flat ones int64 [k]; None where one lies outside a weight of this shape."""

    @abstractmethod
    def places_shape(self, count: int) -> list[int]:
        """The shape of the stored places of ``count`` values."""

    def refusal(self, config: Mapping[str, Any]) -> str | None:
        """Why an adapter with this config is more than changes of single weights; None if it is not."""
        return None


class Shira(SparseFormat):
    """Sparse high-rank adapters (arXiv 2406.13175): r * (in + out) values, places as rows and columns [2, k]."""

    name, title, peft_type, config_class = "shira", "SHiRA", "SHIRA", "ShiraConfig"
    values, places = "shira_weight", "shira_indices"

    def size(self, edit: EditData, counts: Mapping[str, int]) -> dict[str, Any]:
        sides = {entry.module: sum(entry.weight_shape) for entry in edit.space}
        densest = max(sides, key=lambda name: counts[name] / sides[name])
        rank = -(-counts[densest] // sides[densest])
        full = [entry.module for entry in edit.space if rank * sides[entry.module] > entry.rows * entry.columns]
        if full:
            raise ValueError(
                f"edit {edit.name!r} cannot be a SHiRA adapter: {densest} needs SHiRA's r = {rank}, for which the "
                f"weights of {', '.join(full[:4])} have no room: edit fewer weights there, or take the format "
                "'supertuning' or a checkpoint"
            )
        return {"r": rank}

    def room(self, config: Mapping[str, Any], shape: tuple[int, ...]) -> int:
        return int(config["r"]) * sum(shape)

    def stored(self, flat: Tensor, columns: int) -> Tensor:
        return torch.stack([flat // columns, flat % columns]).to(torch.int32)

    def flat(self, stored: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        limits = torch.tensor(shape)[:, None]
        if bool(((stored < 0) | (stored >= limits)).any()):
            return None
        return stored[0].long() * shape[1] + stored[1].long()

    def places_shape(self, count: int) -> list[int]:
        return [2, count]

    def refusal(self, config: Mapping[str, Any]) -> str | None:
        return "is of layers that store their weights as (in, out)" if config.get("fan_in_fan_out") else None


class Supertuning(SparseFormat):
    """Super-Tuning (arXiv 2607.09287): one share of every weight, flat places [k]."""

    name, title, peft_type, config_class = "supertuning", "Super-Tuning", "SUPERTUNING", "SupertuningConfig"
    values, places = "supertuning_values", "supertuning_indices"

    def size(self, edit: EditData, counts: Mapping[str, int]) -> dict[str, Any]:
        shapes = {entry.module: entry.weight_shape for entry in edit.space}
        sparsity = 1 - max(counts[name] / math.prod(shape) for name, shape in shapes.items())
        # A product with 1 - sparsity is cut down to an integer, and may be rounded below the one that is meant.
        while sparsity > 0 and any(self.room({"sparsity": sparsity}, s) < counts[n] for n, s in shapes.items()):
            sparsity = math.nextafter(sparsity, 0)
        return {"sparsity": max(sparsity, 0.0)}

    def room(self, config: Mapping[str, Any], shape: tuple[int, ...]) -> int:
        return int(math.prod(shape) * (1 - float(config["sparsity"])))

    def stored(self, flat: Tensor, columns: int) -> Tensor:
        return flat.to(torch.int32)

    def flat(self, stored: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        outside = bool(((stored < 0) | (stored >= math.prod(shape))).any())
        return None if outside else stored.long()

    def places_shape(self, count: int) -> list[int]:
        return [count]

    def refusal(self, config: Mapping[str, Any]) -> str | None:
        return "has a LoRA beside its single weights (r), which changes whole matrices" if config.get("r") else None


FORMATS: dict[str, SparseFormat] = {each.name: each for each in (Shira(), Supertuning())}
"""By name, as ``export_peft`` takes it."""


def format_named(name: str) -> SparseFormat:
    """The format of this name. Raises ValueError naming those there are."""
    if name not in FORMATS:
        raise ValueError(f"the format is {name!r}, expected one of {', '.join(FORMATS)}")
    return FORMATS[name]


def format_of(peft_type: Any) -> SparseFormat | None:
    """The format of an adapter of this type, as PEFT's configs write it; None where there is none."""
    kind = str(getattr(peft_type, "value", peft_type))
    return next((each for each in FORMATS.values() if each.peft_type == kind), None)
