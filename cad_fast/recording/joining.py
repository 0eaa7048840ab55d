"""Join the rows of denoiser calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..diffusion.trees import leaves, map_arguments, same_leaf
from .call import OUTPUT_NAMES, DenoiserCall

ROW_PATH_NAMES = ("row_paths", "unconditional_row_paths")


class Joiner:
    """Joins the rows of leaves; a tensor shared by several steps is joined once."""

    def __init__(self) -> None:
        self._done: dict[tuple[int, ...], tuple[list[Any], Any]] = {}

    def __call__(self, path: str, parts: Sequence[Any], by_rows: bool) -> Any:
        if not by_rows:
            if not all(same_leaf(parts[0], part) for part in parts[1:]):
                raise ValueError(f"the recordings differ in the input {path}, which all rows share")
            return parts[0]
        if not all(isinstance(part, Tensor) for part in parts):
            return [entry for part in parts for entry in part]
        key = tuple(id(part) for part in parts)
        if key not in self._done:
            shapes = {tuple(part.shape[1:]) for part in parts}
            if len(shapes) > 1:
                raise ValueError(
                    f"the input {path} has rows of different shapes: {sorted(shapes)}. Where a pipeline pads prompts "
                    "to the longest of a batch, record them in one batch (batch_size)"
                )
            self._done[key] = (list(parts), torch.cat(list(parts)))
        return self._done[key][1]

    def join_calls(self, calls: list[DenoiserCall]) -> DenoiserCall:
        """One call of one step with the rows of all."""
        first = calls[0]
        for other in calls[1:]:
            if (first.step, first.sample_key) != (other.step, other.sample_key):
                raise ValueError(f"the recordings differ in their steps: {first.step} and {other.step}")
        outputs: dict[str, Any] = {
            name: self._join_optional(name, [getattr(call, name) for call in calls]) for name in OUTPUT_NAMES
        }
        paths: dict[str, Any] = {name: self._common([getattr(call, name) for call in calls]) for name in ROW_PATH_NAMES}
        without = [call.unconditional_inputs for call in calls]
        self._require_all_or_none("unconditional_inputs", without)
        timestep = first.timestep
        if any(isinstance(call.timestep, Tensor) for call in calls):
            timestep = torch.cat([torch.as_tensor(call.timestep).expand(call.rows) for call in calls])
        return replace(
            first,
            timestep=timestep,
            inputs=self._join_inputs([call.inputs for call in calls], paths["row_paths"]),
            unconditional_inputs=(
                None if without[0] is None else self._join_inputs(without, paths["unconditional_row_paths"])
            ),
            **paths,
            **outputs,
        )

    @staticmethod
    def _common(paths: list[frozenset[str] | None]) -> frozenset[str]:
        # A tensor [1, ...] that all rows share looks like a row of its own in a batch of one.
        return frozenset.intersection(*(some or frozenset() for some in paths))

    @staticmethod
    def _require_all_or_none(name: str, values: Sequence[Any]) -> None:
        if len({value is None for value in values}) > 1:
            raise ValueError(f"some of the recordings have {name} and some have not")

    def _join_optional(self, name: str, values: list[Tensor | None]) -> Tensor | None:
        self._require_all_or_none(name, values)
        return None if values[0] is None else self(name, values, True)

    def _join_inputs(self, parts: list[Any], row_paths: frozenset[str]) -> dict[str, Any]:
        by_path = [dict(leaves(part)) for part in parts]
        for paths in by_path[1:]:
            if paths.keys() != by_path[0].keys():
                raise ValueError(f"the recordings differ in inputs: {sorted(by_path[0])} and {sorted(paths)}")
        return map_arguments(parts[0], lambda path, _: self(path, [leaf[path] for leaf in by_path], path in row_paths))
