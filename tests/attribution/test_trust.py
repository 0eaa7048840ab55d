"""How well scores predict J: against the textbooks, in words and as JSON."""

from __future__ import annotations

import pytest
import torch

from cad_fast import Ablation
from cad_fast.attribution import Attributor, Scores
from cad_fast.attribution.gradients.averages import more_passes
from cad_fast.attribution.trust import Trust, predicted_change, trust_lines


def test_trust_is_the_textbooks() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    predicted, measured = torch.randn(50).round(decimals=1), torch.randn(50).round(decimals=1)
    measured = measured + predicted
    trust = Trust.of(predicted, measured, 0.05)
    assert trust.pearson == pytest.approx(scipy_stats.pearsonr(predicted, measured).statistic)
    assert trust.spearman == pytest.approx(scipy_stats.spearmanr(predicted, measured).statistic)
    low, high = trust.pearson_interval
    fisher = scipy_stats.pearsonr(predicted, measured).confidence_interval(0.95)
    assert low == pytest.approx(fisher.low, abs=0.1) and high == pytest.approx(fisher.high, abs=0.1)
    with pytest.raises(ValueError, match="at least 8 ablations, got 3"):
        Trust.of(predicted[:3], measured[:3], 0.05)
    with pytest.raises(ValueError, match=r"all predicted values of J are 1\.0"):
        Trust.of(torch.ones(9), measured[:9], 0.05)


def test_predicted_change_counts_factors() -> None:
    values = torch.tensor([1.0, -2.0, 4.0])
    ablations = [Ablation.from_indices(3, [0, 2]), Ablation.from_indices(3, [1], 0.5), Ablation.from_indices(3, [])]
    assert predicted_change(values, ablations).tolist() == [-5.0, 1.0, 0.0]


def test_trust_has_a_slope_and_comes_back_from_json() -> None:
    predicted = torch.randn(400)
    measured = 0.7 * predicted + 0.2 * torch.randn(400) + 5
    trust = Trust.of(predicted, measured, 0.05)
    assert trust.slope == pytest.approx(0.7, abs=0.05)
    assert trust.slope_interval[0] < 0.7 < trust.slope_interval[1]
    assert Trust.from_dict(trust.to_dict()) == trust
    assert f"slope {trust.slope:.2f} on 400 ablations of 5%" in str(trust)


def test_trust_in_words(pipeline, recording) -> None:
    attributor = Attributor(pipeline, kind="head", method="ablated_gradient", fraction=0.1)
    scores = attributor.run(recording, holdout=10, rows_per_pass=6, progress=False)
    lines = trust_lines(scores)
    assert [line[:4] for line in lines[:3]] == ["r = "] * 3
    reliability = scores.provenance["estimate"]["reliability"]
    assert f"reliability {reliability:.2f}" in lines[3]
    assert scores.provenance["estimate"]["reliability_with_twice_the_passes"] == more_passes(reliability, 2)
    assert trust_lines(Scores(scores.values, scores.space, {})) == []
