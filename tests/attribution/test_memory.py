"""Rows per pass: as the method wants, fewer only for a large denoiser whose activations take much room."""

import pytest
import torch

from cad_fast.attribution import Attributor, memory
from cad_fast.attribution.memory import fitting_rows
from cad_fast.components.space import ComponentSpace
from cad_fast.objectives import ConceptErasure
from cad_fast.recording.record import record
from tests.pipelines import stable_diffusion


@pytest.fixture(scope="module")
def setting():
    pipeline = stable_diffusion()
    recording = record(pipeline, ["a cat", "a dog"], num_inference_steps=2, progress=False)
    return pipeline.unet, recording, ConceptErasure(), ComponentSpace.of(pipeline)


def test_small_denoisers_are_not_looked_at(setting, monkeypatch) -> None:
    monkeypatch.setattr(memory, "CPU_BUDGET", 1)
    assert fitting_rows(*setting, 16) == 16


def test_rows_by_what_one_keeps(setting, monkeypatch) -> None:
    denoiser, recording, objective, space = setting
    monkeypatch.setattr(memory, "LARGE", 1)
    assert fitting_rows(*setting, 16) == 16  # within the budget
    kept = []
    monkeypatch.setattr(memory, "CPU_BUDGET", 10**9)
    original = memory._Kept.__exit__
    monkeypatch.setattr(memory._Kept, "__exit__", lambda self, *e: kept.append(self.bytes) or original(self, *e))
    fitting_rows(*setting, 16)
    # More than the feed-forward inputs that the gradients of their weights need, less than a megabyte in all.
    inputs = sum(module.in_features for module in space.modules(denoiser).values()) * 16 * 4
    assert inputs < kept[0] < 2**20
    monkeypatch.setattr(memory, "CPU_BUDGET", 3 * kept[0] + 1)
    assert fitting_rows(*setting, 16) == 3
    monkeypatch.setattr(memory, "CPU_BUDGET", 1)
    assert fitting_rows(*setting, 16) == 1 and not any(p.requires_grad for p in denoiser.parameters())
    few = Attributor(stable_diffusion(), objective, space).run(recording, progress=False)
    monkeypatch.undo()
    many = Attributor(stable_diffusion(), objective, space).run(recording, progress=False)
    assert few.provenance["rows_per_pass"] == 1 and many.provenance["rows_per_pass"] == 16
    torch.testing.assert_close(few.values, many.values, rtol=1e-4, atol=1e-6)
