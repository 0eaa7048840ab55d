"""Check that a denoiser still gives what was recorded."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...diffusion.context import only_gradients_of
from ...objectives import Objective
from ...recording.data import REPLAY_TOLERANCE, Recording


def require_replayed(output: Tensor, recorded: Tensor) -> None:
    """Raise ValueError when ``output`` [R, ...] is not what was recorded, beyond rounding."""
    recorded = recorded.to(output.device)
    if not bool(output.isfinite().all()):
        raise ValueError("replaying the recording gives outputs that are NaN or infinite, unlike the recorded ones")
    distance = ((output.float() - recorded.float()).norm() / recorded.float().norm().clamp(min=1e-20)).item()
    if not distance <= REPLAY_TOLERANCE[output.dtype]:
        raise ValueError(
            f"replaying the recording gives outputs that differ from the recorded ones by {100 * distance:.2g}%: "
            "the denoiser has changed since (an edit or adapter is active?), record again"
        )


@torch.no_grad()
def require_unchanged(denoiser: nn.Module, recording: Recording, objective: Objective) -> None:
    """Raise ValueError when the denoiser gives something else now for a recorded row that the objective looks at.

    For methods that never run the intact network on what was recorded. A recording without outputs passes.
    """
    call = next((c for c in recording.calls if objective.active(c) and c.output is not None), None)
    if call is not None:
        row = call.select_rows([0])
        assert row.output is not None, "the call has an output, and so have its rows"
        with only_gradients_of(denoiser, []):
            require_replayed(row.run(denoiser), row.output)
