"""One call of a denoiser as plain data: its arguments by name, which of them belong to rows, and its outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.denoisers import device_of, output_tensor
from ..diffusion.trees import find_row_paths, map_arguments


@dataclass(eq=False, repr=False)
class DenoiserCall:
    """What one denoiser call was given and gave, for the conditional rows [B, ...] of one timestep.

    ``timestep`` is the value the denoiser was given (Flux: 0 to 1; most others: 0 to 1000), one number, or float32 [B]
    where rows differ. ``inputs`` are its arguments by name, with nested dicts, lists and tuples of tensors.
    ``unconditional_*`` are None without classifier-free guidance; ``output`` and ``target`` are None where
    there is none (calls made by ``renoise`` have a target and no output, recorded ones the reverse); ``base_output``
    comes from ``with_base``. ``row_paths`` names the inputs with one entry per row, ``unconditional_row_paths`` the
    unconditional ones (which may share one negative prompt); they are found by length if not given.
    """

    step: int
    timestep: float | Tensor
    inputs: dict[str, Any]
    sample_key: str
    output: Tensor | None
    unconditional_inputs: dict[str, Any] | None = None
    unconditional_output: Tensor | None = None
    base_output: Tensor | None = None
    target: Tensor | None = None
    timestep_key: str = "timestep"
    row_paths: frozenset[str] | None = None
    unconditional_row_paths: frozenset[str] | None = None

    def __post_init__(self) -> None:
        sample = self.inputs.get(self.sample_key)
        if not isinstance(sample, Tensor) or sample.ndim < 2:
            raise ValueError(f"step {self.step}: the input {self.sample_key!r} is not a tensor with rows")
        if self.row_paths is None:
            self.row_paths = find_row_paths(self.inputs, len(sample))
        if self.unconditional_row_paths is None:
            self.unconditional_row_paths = find_row_paths(self.unconditional_inputs or {}, len(sample))
        for name in OUTPUT_NAMES:
            tensor = getattr(self, name)
            if tensor is not None and (tensor.ndim < 1 or len(tensor) != len(sample)):
                raise ValueError(
                    f"step {self.step}: {name} has shape {list(tensor.shape)}, expected {len(sample)} rows"
                )

    def __repr__(self) -> str:
        held = [name for name in OUTPUT_NAMES if getattr(self, name) is not None]
        return f"DenoiserCall(step={self.step}, timestep={self.timestep}, rows={self.rows}, with {', '.join(held)})"

    @property
    def sample(self) -> Tensor:
        """The noisy sample given to the denoiser, [B, ...]."""
        return self.inputs[self.sample_key]

    @property
    def rows(self) -> int:
        return len(self.sample)

    def prediction(self, output: Tensor) -> Tensor:
        """The part of a denoiser output [R, C or 2C, ...] that is its prediction: without learned variances.

        Models with twice as many output as input channels (PixArt, DiT) predict a variance in the second half, which
        pipelines drop.
        """
        channels = self.sample.shape[1] if self.sample.ndim == output.ndim == 4 else None
        return output[:, :channels] if channels is not None and output.shape[1] == 2 * channels else output

    def run(self, denoiser: nn.Module, **overrides: Any) -> Tensor:
        """Call ``denoiser`` on the conditional inputs, some replaced by ``overrides``; returns its output tensor.

        Tensors are moved to the denoiser's device and keep their dtype. Whether gradients are kept is the caller's
        choice. Raises TypeError when the denoiser returns no tensor, ValueError when it has another dtype than the one
        that was recorded and cannot take these inputs.
        """
        device = device_of(denoiser)
        arguments: dict[str, Any] = {**self.inputs, **overrides}
        if device is not None:
            arguments = map_arguments(arguments, lambda _, leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf)
        try:
            return output_tensor(denoiser(**arguments))
        except RuntimeError as error:
            weight = next((each for each in denoiser.parameters() if each.is_floating_point()), self.sample)
            if "type" not in str(error) or weight.dtype == self.sample.dtype:
                raise
            raise ValueError(
                f"the recording is of {self.sample.dtype}, the denoiser of {weight.dtype}: load the model in the "
                "recording's dtype, or record again"
            ) from error

    def select_rows(self, rows: Sequence[int] | Tensor) -> DenoiserCall:
        """The same call with the given rows in the given order; a row may be repeated. Raises IndexError."""
        return self._on_rows(RowPicker(check_rows(rows, self.rows)))

    def _on_rows(self, pick: Callable[[Any], Any]) -> DenoiserCall:
        def on_rows(inputs: dict[str, Any], paths: frozenset[str] | None) -> dict[str, Any]:
            return map_arguments(inputs, lambda path, leaf: pick(leaf) if path in (paths or ()) else leaf)

        without = self.unconditional_inputs
        changes: dict[str, Any] = {name: _optional(pick, getattr(self, name)) for name in OUTPUT_NAMES}
        return replace(
            self,
            timestep=pick(self.timestep) if isinstance(self.timestep, Tensor) else self.timestep,
            inputs=on_rows(self.inputs, self.row_paths),
            unconditional_inputs=None if without is None else on_rows(without, self.unconditional_row_paths),
            **changes,
        )


OUTPUT_NAMES = ("output", "unconditional_output", "base_output", "target")


def _optional(function: Callable[[Any], Any], value: Any) -> Any:
    return None if value is None else function(value)


def check_rows(rows: Sequence[int] | Tensor, n_rows: int) -> list[int]:
    """``rows`` as a list of non-negative integers. Raises ValueError when empty, IndexError outside the rows."""
    listed = [
        row if isinstance(row, int) else int(row) for row in (rows.tolist() if isinstance(rows, Tensor) else rows)
    ]
    if any(isinstance(row, bool) for row in listed):
        raise ValueError("rows are given by their numbers, not by a mask")
    if not listed:
        raise ValueError("no rows were selected")
    outside = [row for row in listed if not -n_rows <= row < n_rows]
    if outside:
        raise IndexError(f"rows {outside} are not among the {n_rows} rows recorded")
    return [row % n_rows for row in listed]


class RowPicker:
    """Picks rows out of tensors [B, ...] and lists; what is one object before is one object after."""

    def __init__(self, rows: list[int]) -> None:
        self.rows = rows
        self._done: dict[int, tuple[Any, Any]] = {}  # keeps the original alive, so that its id stays its own

    def __call__(self, value: Any) -> Any:
        if id(value) not in self._done:
            if isinstance(value, Tensor):
                picked: Any = value.index_select(0, torch.tensor(self.rows, device=value.device))
            else:
                picked = [value[row] for row in self.rows]
            self._done[id(value)] = (value, picked)
        return self._done[id(value)][1]
