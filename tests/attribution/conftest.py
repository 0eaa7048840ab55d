"""The small pipeline and the recordings that most tests of attribution use."""

from __future__ import annotations

import pytest

import cad_fast
from cad_fast import CallableObjective, ConceptErasure
from cad_fast.recording.record import with_base
from tests.pipelines import stable_diffusion


@pytest.fixture(scope="module")
def pipeline():
    return stable_diffusion()


@pytest.fixture(scope="module")
def recordings(pipeline):
    def one(prompts):
        return cad_fast.record(pipeline, prompts, num_inference_steps=3, guidance_scale=3.0, progress=False)

    return one(["a cat", "a dog"]), one(["a red car"])


@pytest.fixture(scope="module")
def recording(recordings):
    return recordings[0]


@pytest.fixture(scope="module")
def concepts(pipeline, recordings):
    """Concepts that share a recording, have a window, need another output, or a recording of their own."""
    animals, car = recordings
    mean = CallableObjective(lambda output, call: output.flatten(1).mean(1), "mean")
    late = ConceptErasure(timesteps=(0, max(animals.timesteps) - 1))
    based = with_base(car, pipeline, "a thing", progress=False)
    return {
        "animal": animals,
        "late animal": (late, animals),
        "mean of animals": (mean, animals),
        "car/red": car,
        "car, not a thing": (ConceptErasure(base="base"), based),
    }
