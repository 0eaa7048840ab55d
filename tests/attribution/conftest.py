"""The small pipeline and the recording that most tests of attribution use."""

from __future__ import annotations

import pytest

import cad_fast
from tests.pipelines import stable_diffusion


@pytest.fixture(scope="module")
def pipeline():
    return stable_diffusion()


@pytest.fixture(scope="module")
def recording(pipeline):
    return cad_fast.record(pipeline, ["a cat", "a dog"], num_inference_steps=3, guidance_scale=3.0, progress=False)
