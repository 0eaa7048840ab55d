"""One pass of the denoiser in which every row runs under its own request's edits."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from ...diffusion.denoisers import ForwardSignature, denoiser_of, output_tensor
from ...diffusion.trees import find_row_paths, map_arguments
from ...edits import Edit, RowEdits
from ...edits.weights import multiplied, put_weights
from .jobs import RequestedEdit

Uses = tuple[RequestedEdit, ...]


class EditedPasses(Protocol):
    """A way to run a pass of the denoiser with every row under its own edits."""

    def run(self, inputs: dict[str, Any], per_row: Sequence[Uses]) -> Any:
        """Run the denoiser.

        Args:
            inputs: the denoiser's arguments by name.
            per_row: the edits of each row.

        Returns:
            The denoiser's output.
        """
        ...

    def forget(self, edit: Edit) -> None:
        """Release what is kept for an edit that no later pass will use."""
        ...

    def close(self) -> None:
        """Leave the denoiser as it was. No pass follows."""
        ...


class SwappedWeights:
    """Passes with the edits put into the weights and taken out again, one pass for every set of edits among the rows.

    This is the baseline that row-wise edits are measured against. It is slow as soon as requests differ.
    """

    def __init__(self, pipeline: Any) -> None:
        self._denoiser = denoiser_of(pipeline)
        self._timestep_key = ForwardSignature.of(self._denoiser).timestep_key
        self._modules = dict(getattr(self._denoiser, "_orig_mod", self._denoiser).named_modules())

    def run(self, inputs: dict[str, Any], per_row: Sequence[Uses]) -> Any:
        """Run as ``EditedPasses.run``. If rows have different edits, the output is a tuple of one tensor."""
        timesteps = torch.as_tensor(inputs[self._timestep_key]).float().reshape(-1).expand(len(per_row)).tolist()
        groups: dict[Any, list[int]] = {}
        active = [_active(uses, timestep) for uses, timestep in zip(per_row, timesteps, strict=True)]
        for row, uses in enumerate(active):
            # By identity: an edit that was read again has the name of the one before it.
            groups.setdefault(tuple((id(use.edit), use.strength) for use in uses), []).append(row)
        if len(groups) == 1:
            with self._edited(active[0]):
                return self._denoiser(**inputs)
        row_paths = find_row_paths(inputs, len(per_row))
        output: Tensor | None = None
        for rows in groups.values():
            picked = _picked(inputs, row_paths, rows)
            with self._edited(active[rows[0]]):
                part = output_tensor(self._denoiser(**picked))
            output = part.new_empty(len(per_row), *part.shape[1:]) if output is None else output
            output[rows] = part
        return (output,)

    def forget(self, edit: Edit) -> None:
        """Do nothing: nothing is kept."""

    def close(self) -> None:
        """Do nothing: the weights are as they were after every pass."""

    @contextmanager
    def _edited(self, uses: Uses) -> Iterator[None]:
        undo: list[tuple[Tensor, Tensor, Tensor]] = []
        try:
            for use in uses:
                factor = 1 - use.strength * (1 - use.edit.factor)
                for name, indices in use.edit.weight_indices().items():
                    weight = self._modules[name].weight
                    values = weight.data.flatten()[indices]
                    undo.append((weight, indices, values))
                    put_weights(weight, indices, multiplied(values, factor))
            yield
        finally:
            for weight, indices, values in reversed(undo):
                put_weights(weight, indices, values)


def _picked(inputs: dict[str, Any], row_paths: frozenset[str], rows: list[int]) -> dict[str, Any]:
    return map_arguments(inputs, lambda path, leaf: leaf[rows] if path in row_paths else leaf)


def _active(uses: Uses, timestep: float) -> Uses:
    return tuple(use for use in uses if use.window is None or use.window[0] <= timestep <= use.window[1])


class RowWise:
    """One pass for all rows, whatever their edits.

    Args:
        pipeline: the pipeline whose denoiser runs.
        cache_bytes: memory for prepared edits, in bytes (see ``cad_fast.edits.RowEdits``).
    """

    def __init__(self, pipeline: Any, cache_bytes: int = 128 << 20) -> None:
        self._rows = RowEdits(pipeline, cache_bytes=cache_bytes)
        self._numbers = itertools.count()
        self._names: dict[int, tuple[Edit, str]] = {}  # by identity: an edit read again has its old name

    @property
    def known(self) -> list[str]:
        """The internal names of the edits that are kept prepared."""
        return list(self._rows.names)

    def run(self, inputs: dict[str, Any], per_row: Sequence[Uses]) -> Any:
        """Run as ``EditedPasses.run``."""
        rows = [tuple((self._name(use.edit), use.strength, use.window) for use in uses) for uses in per_row]
        with self._rows.rows(rows):
            return self._rows.denoiser(**inputs)

    def forget(self, edit: Edit) -> None:
        """Release what was prepared for an edit."""
        _, name = self._names.pop(id(edit), (edit, None))
        if name is not None:
            self._rows.remove(name)

    def close(self) -> None:
        """Give the modules of the denoiser their own forwards back."""
        self._rows.close()
        self._names.clear()

    def _name(self, edit: Edit) -> str:
        if id(edit) not in self._names:
            name = f"{edit.name[:40]}.{next(self._numbers)}"
            self._names[id(edit)] = (edit, self._rows.add(edit, name))
        return self._names[id(edit)][1]
