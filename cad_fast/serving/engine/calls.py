"""Calls of a pipeline's parts as plain data: which may share a pass, joining their rows, splitting the output."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...diffusion.denoisers import TIMESTEP_NAMES
from ...diffusion.trees import SHARED_NAMES, leaves, map_arguments, same_leaf
from ...remembered import remembered_output


@dataclass(eq=False)
class Part:
    """A method of a pipeline whose calls share passes, such as the denoiser's forward or the VAE's decode.

    Attributes:
        name: name in logs, errors and metrics.
        run: makes a call.
        signature: names the arguments of a call.
        priority: parts of a lower priority go first.
        ignores: arguments without effect on the output.
        batches: whether calls may share a pass. It becomes False when an output cannot be divided by rows.
    """

    name: str
    run: Callable[..., Any]
    signature: inspect.Signature
    priority: int
    ignores: frozenset[str] = frozenset()
    batches: bool = True

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Name the arguments of one call.

        Raises:
            TypeError: they do not fit the signature, or some have no name.
        """
        bound = self.signature.bind(*args, **kwargs).arguments
        inputs: dict[str, Any] = {}
        for name, value in bound.items():
            kind = self.signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_KEYWORD:
                inputs.update(value)
            elif kind is not inspect.Parameter.VAR_POSITIONAL:
                inputs[name] = value
            elif value:
                raise TypeError(f"{self.name} was called with nameless arguments (*{name}), which cannot be batched")
        return inputs


class PartCall:
    """One call of a part: its inputs, the number of their rows, and which of them have an entry per row."""

    def __init__(self, part: Part, inputs: dict[str, Any], number: int) -> None:
        self.part, self.inputs, self.number = part, inputs, number
        self.rows = _count_rows(inputs)
        self._shared: dict[str, Any] = {}
        layout: list[Hashable] = [part.name]
        for path, leaf in leaves(inputs):
            if path in part.ignores:
                continue
            if path in TIMESTEP_NAMES and self.rows:
                leaf = inputs[path] = _per_row(leaf, self.rows)
            if self._is_per_row(path, leaf):
                layout.append((path, leaf.dtype, leaf.device, leaf.shape[1:]))
            else:
                layout.append(path)
                self._shared[path] = leaf
        self.layout = tuple(layout)

    def _is_per_row(self, path: str, leaf: Any) -> bool:
        rowed = isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == self.rows
        return rowed and not SHARED_NAMES & set(path.split("."))

    def fits(self, other: PartCall) -> bool:
        """Tell whether both may share a pass: they agree in everything but the values of their rows."""
        if self.layout != other.layout or not (self.rows and self.part.batches):
            return False
        return all(same(value, other._shared[path]) for path, value in self._shared.items())

    def is_shared(self, path: str) -> bool:
        """Tell whether all rows share the input at ``path``."""
        return path in self._shared or path in self.part.ignores


def _count_rows(inputs: Mapping[str, Any]) -> int:
    """Return the length of the first tensor, for every part the sample or the tokens; 0 without a tensor."""
    return next((len(value) for value in inputs.values() if isinstance(value, Tensor) and value.ndim > 0), 0)


def _per_row(timestep: Any, rows: int) -> Tensor:
    timestep = torch.as_tensor(timestep)
    return timestep if timestep.ndim and len(timestep) == rows else timestep.reshape(-1)[:1].expand(rows)


def same(first: Any, second: Any) -> bool:
    """Tell whether two values are known to be the same."""
    try:
        return same_leaf(first, second)
    except (ValueError, TypeError, RuntimeError):  # things whose comparison is no plain truth
        return False


def join(calls: Sequence[PartCall]) -> dict[str, Any]:
    """Join the inputs of ``calls`` that fit each other, row after row in their order, for one pass.

    Inputs that come again, as a text does in every step, are joined to the very tensor of the pass before, so that
    layers know them again.
    """
    first = calls[0]
    if len(calls) == 1:
        return first.inputs
    by_path = [dict(leaves(call.inputs)) for call in calls]

    def joined(path: str, leaf: Any) -> Any:
        if first.is_shared(path):
            return leaf
        parts = [paths[path] for paths in by_path]
        return remembered_output("joined rows", parts, (), functools.partial(torch.cat, parts))

    return map_arguments(first.inputs, joined)


def split(output: Any, calls: Sequence[PartCall]) -> list[Any]:
    """Divide the output of a pass among its ``calls``. Tensors are views of the output.

    Raises:
        ValueError: the output has something that cannot be divided by rows.
    """
    if len(calls) == 1:
        return [output]
    rows = sum(call.rows for call in calls)
    parts, first = [], 0
    for call in calls:
        parts.append(_rows_of(output, slice(first, first + call.rows), rows))
        first += call.rows
    return parts


def _rows_of(tree: Any, rows: slice, total: int) -> Any:
    if isinstance(tree, Tensor):
        if tree.ndim == 0 or len(tree) != total:
            raise ValueError(f"the output has a tensor of shape {list(tree.shape)}, expected {total} rows")
        return tree[rows]
    if isinstance(tree, dict):  # the output classes of transformers and diffusers among them
        return type(tree)(**{key: _rows_of(value, rows, total) for key, value in tree.items()})
    if type(tree) in (tuple, list):
        return type(tree)([_rows_of(value, rows, total) for value in tree])
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise ValueError(f"the output has a {type(tree).__name__}, which cannot be divided by rows")


def finite_rows(output: Any, rows: int) -> Tensor | None:
    """Find the rows of a pass whose numbers are all finite.

    Returns:
        Bool tensor [rows]; None if all rows are finite.
    """
    tensors = [leaf for _, leaf in leaves({"output": output}) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    tensors = [tensor for tensor in tensors if tensor.ndim > 0 and len(tensor) == rows]
    checks = [torch.isfinite(tensor).flatten(1).all(1) for tensor in tensors if tensor.ndim > 1]
    if not checks:
        return None
    finite = torch.stack(checks).all(0)
    return None if bool(finite.all()) else finite.cpu()
