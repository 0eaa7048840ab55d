"""Components ablated alone against copies of the denoiser, and the other methods against them."""

from __future__ import annotations

import json

import pytest
import torch

from cad_fast import Ablation, ConceptErasure
from cad_fast.attribution import Attributor
from cad_fast.attribution.measuring.plans import Target
from tests.attribution.common import assert_close, slow_j


def test_exact_is_ablating_one_at_a_time(pipeline, recording) -> None:
    attributor = Attributor(pipeline, kind="head", method="exact")
    scores = attributor.run(recording, progress=False)
    target = Target(ConceptErasure(), recording)
    intact = slow_j(pipeline.unet, target, scores.space, Ablation.from_indices(len(scores), []))
    alone = [
        slow_j(pipeline.unet, target, scores.space, Ablation.from_indices(len(scores), [number]))
        for number in range(len(scores))
    ]
    assert_close(scores.values, intact - torch.tensor(alone))
    assert scores.provenance["cost"]["backward_passes"] == 0


def test_the_estimators_agree_with_exact_and_say_how_well_they_predict(pipeline, recording) -> None:
    exact = Attributor(pipeline, kind="head", method="exact").run(recording, progress=False)
    runs = {
        "ablated_gradient": {"fraction": 0.1, "partitions": 3},
        "regression": {"ablations": 200, "fraction": 0.1},
    }
    for method, options in runs.items():
        attributor = Attributor(pipeline, kind="head", method=method, **options)
        scores = attributor.run(recording, holdout=40, holdout_fractions=(0.1, 0.3), progress=False)
        assert float(torch.corrcoef(torch.stack([scores.values, exact.values]))[0, 1]) > 0.95
        assert [check["fraction"] for check in scores.trust] == [0.1, 0.3]
        for check in scores.trust:
            low, high = check["pearson_interval"]
            assert 0.8 < low < check["pearson"] < high <= 1 and check["spearman"] > 0.7
        json.dumps(scores.provenance)


def test_intact_j_is_that_of_the_denoiser(pipeline, recording) -> None:
    scores = Attributor(pipeline, ConceptErasure(), kind="head", method="exact").run(recording, progress=False)
    assert scores.provenance["intact_j"] == pytest.approx(scores.provenance["estimate"]["intact_j"], rel=1e-4)
