"""Regression on ablations: with a prior, and stopped after a batch."""

from __future__ import annotations

import pytest
import torch

from cad_fast.attribution import Attributor, Scores, StopWhen


def test_regression_on_a_prior(pipeline, recording, tmp_path) -> None:
    prior = Attributor(pipeline, kind="head", method="ablated_gradient", fraction=0.1).run(recording, progress=False)
    with_prior = Attributor(pipeline, kind="head", method="regression", ablations=60, fraction=0.1, prior=prior)
    scores = with_prior.run(recording, output_dir=tmp_path, progress=False)
    assert scores.provenance["options"]["prior"] == {"concept": "a cat", "method": "ablated_gradient"}
    assert scores.provenance["estimate"]["prior_scale"] == pytest.approx(1, abs=0.3)
    assert scores.standard_error.shape == scores.values.shape
    loaded = Scores.load(tmp_path)
    assert torch.equal(loaded.standard_error, scores.standard_error)
    other = Attributor(pipeline, kind="neuron", method="regression", prior=prior)
    with pytest.raises(ValueError, match="prior has scores over ComponentSpace"):
        other.run(recording, progress=False)


PARTS = {"fraction": 0.25}


ROWS = 6  # two pictures, three steps


def attributor_of(pipeline, method: str, **options) -> Attributor:
    return Attributor(pipeline, kind="head", method=method, **PARTS, **options)


def test_a_regression_stops_after_a_batch(pipeline, recording, monkeypatch) -> None:
    monkeypatch.setattr("cad_fast.attribution.methods.regression.STOP_BATCH", 20)
    run = {"rows_per_pass": 2 * ROWS, "progress": False}
    budget = StopWhen(row_evaluations=30 * ROWS)
    scores = attributor_of(pipeline, "regression", ablations=100).run(recording, stop_when=budget, **run)
    expected = attributor_of(pipeline, "regression", ablations=40).run(recording, **run)
    assert scores.provenance["estimate"]["ablations"] == 40 and torch.equal(scores.values, expected.values)
    assert scores.provenance["cost"]["forward_passes"] == expected.provenance["cost"]["forward_passes"] == 20
