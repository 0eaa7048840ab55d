"""What the tests of recordings share."""

from __future__ import annotations

import pytest
import torch

from cad_fast.recording.data import Recording
from cad_fast.recording.record import record
from tests.pipelines import PIPELINES

PROMPTS = ["a cat", "a red dog", "dog"]
STEPS = 3
every_pipeline = pytest.mark.parametrize("name", PIPELINES)


def make(name: str, prompts: list[str] = PROMPTS, **kwargs):
    factory, more = PIPELINES[name]
    pipeline = factory()
    return pipeline, record(pipeline, prompts, num_inference_steps=STEPS, progress=False, **{**more, **kwargs})


def close(first: torch.Tensor, second: torch.Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance)


def assert_same(first: Recording, second: Recording) -> None:
    """The same, to rounding, in all that generation gives."""
    assert (first.prompts, first.seeds, first.timesteps) == (second.prompts, second.seeds, second.timesteps)
    close(first.latents, second.latents)
    for a, b in zip(first.calls, second.calls, strict=True):
        close(a.sample, b.sample)
        close(a.output, b.output)
        if a.unconditional_output is not None:
            close(a.unconditional_output, b.unconditional_output)
