"""Rows of a recording as one call of the denoiser, and J of what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...diffusion.trees import leaves, map_arguments, same_leaf
from ...objectives import Objective
from ...recording.call import OUTPUT_NAMES, DenoiserCall
from ...recording.data import Recording
from .plans import Pass


def gather(recording: Recording, pieces: Pass) -> DenoiserCall:
    """Return one denoiser call with the named rows of the named calls, each row at its own timestep."""
    return merge_calls([recording.calls[number].select_rows(rows) for number, rows in pieces])


def repeated(call: DenoiserCall, variants: int) -> DenoiserCall:
    """Return the call with its rows once per variant, variant-major."""
    return call.select_rows(list(range(call.rows)) * variants) if variants > 1 else call


def objective_of(
    denoiser: nn.Module, recording: Recording, objective: Objective, pieces: Pass, call: DenoiserCall
) -> tuple[Tensor, Tensor]:
    """Run ``call``, which holds the rows of ``pieces`` once or several times.

    An objective of both branches gets the unconditional output of the same denoiser, at the cost of as many rows again.

    Returns:
        The denoiser's output, and J float32 [call.rows].
    """
    output = call.run(denoiser)
    if objective.both_branches:
        parts = [unconditional_call(recording.calls[number].select_rows(rows)) for number, rows in pieces]
        other = merge_calls(parts)
        other = repeated(other, call.rows // other.rows)
        call = replace(call, unconditional_output=other.run(denoiser))
    return output, objective(output, call)


def unconditional_call(call: DenoiserCall) -> DenoiserCall:
    """Return the unconditional call of the same rows. Raises ValueError where none was recorded."""
    if call.unconditional_inputs is None:
        raise ValueError(f"the recording lacks the unconditional inputs at step {call.step}: it has no guidance")
    return DenoiserCall(
        call.step,
        call.timestep,
        call.unconditional_inputs,
        call.sample_key,
        None,
        timestep_key=call.timestep_key,
        row_paths=call.unconditional_row_paths,
    )


def recorded_j(recording: Recording, objective: Objective) -> float | None:
    """Return J of the intact network, the mean over rows and active timesteps. None where no output was recorded."""
    values = [
        objective(call.output, call) for call in recording.calls if objective.active(call) and call.output is not None
    ]
    return float(torch.cat(values).double().mean()) if values else None


def merge_calls(calls: Sequence[DenoiserCall]) -> DenoiserCall:
    """Return one call with the rows of all ``calls`` in their order, the timestep given per row.

    Raises:
        ValueError: An input that all rows share differs between the calls. The message names it.
    """
    first = calls[0]
    if len(calls) == 1:
        return first
    row_paths = frozenset.intersection(*(call.row_paths or frozenset() for call in calls)) | {first.timestep_key}
    by_path = [dict(leaves(_with_row_timesteps(call))) for call in calls]

    def join(path: str, leaf: Any) -> Any:
        parts = [paths[path] for paths in by_path]
        if path not in row_paths:
            if not all(same_leaf(leaf, part) for part in parts):
                raise ValueError(
                    f"the input {path} differs between timesteps but is shared by all rows: use rows_per_pass=1"
                )
            return leaf
        return torch.cat(parts) if isinstance(leaf, Tensor) else [entry for part in parts for entry in part]

    parts_of = {name: [getattr(call, name) for call in calls] for name in OUTPUT_NAMES}
    outputs: dict[str, Any] = {
        name: None if any(part is None for part in parts) else torch.cat(parts) for name, parts in parts_of.items()
    }
    timesteps = [torch.as_tensor(call.timestep).float().expand(call.rows) for call in calls]
    return replace(
        first,
        timestep=torch.cat(timesteps),
        inputs=map_arguments(_with_row_timesteps(first), join),
        unconditional_inputs=None,
        row_paths=row_paths,
        **outputs,
    )


def _with_row_timesteps(call: DenoiserCall) -> dict[str, Any]:
    """The call's inputs with the timestep as a tensor with one entry per row."""
    timestep = torch.as_tensor(call.inputs[call.timestep_key])
    if timestep.ndim == 0 or len(timestep) != call.rows:
        timestep = timestep.reshape(-1)[:1].expand(call.rows)
    return {**call.inputs, call.timestep_key: timestep}
