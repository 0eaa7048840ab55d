"""What tests of attribution share: slow truths, comparisons, and runs that are stopped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cad_fast import Ablation, ComponentSpace
from cad_fast.attribution.measuring.plans import Target
from tests.row_truth import ablated_copy

KINDS = ("weight", "neuron", "filter", "head")


def space_of(pipeline: Any, kind: str) -> ComponentSpace:
    return ComponentSpace.of(pipeline, kind, "attention" if kind == "weight" else None)


def slow_j(denoiser: Any, target: Target, space: ComponentSpace, ablation: Ablation) -> float:
    """J of a copy of the denoiser that is ablated in its weights, call by call."""
    values = []
    copy = ablated_copy(denoiser, space, ablation)
    with torch.no_grad():
        for call in target.recording.calls:
            if target.objective.active(call):
                values.append(target.objective(call.run(copy), call).double())
    return float(torch.cat(values).mean())


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-3) -> None:
    found, expected = found.double(), expected.double()
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance / 10 * float(expected.abs().max()))


def interrupt(patch: pytest.MonkeyPatch, owner: Any, name: str, number: int) -> list[dict[str, Any]]:
    """Have the number-th call of ``owner.name`` end as by Ctrl-C. Returns the keywords of the calls, as they come."""
    calls: list[dict[str, Any]] = []
    whole = getattr(owner, name)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs)
        if len(calls) == number:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    patch.setattr(owner, name, interrupted)
    return calls
