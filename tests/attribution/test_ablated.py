"""J and gradients at many ablated networks against one copy of the denoiser per ablation; trust; the methods on top."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from cad_fast import Ablation, ComponentSpace, ConceptErasure
from cad_fast.attribution import Attributor, Scores
from cad_fast.attribution.measuring.measure import objective_under_ablations
from cad_fast.attribution.measuring.passes import merge_calls
from cad_fast.attribution.methods.ablated_gradient import ablated_gradient_scores
from cad_fast.attribution.regression.draws import parts_of
from cad_fast.attribution.store import STATE_NAME
from cad_fast.attribution.trust import Trust, predicted_change
from cad_fast.edits import Edit
from tests.attribution.common import interrupt
from tests.row_truth import ablated_copy, slow_gradient

KINDS = ["weight", "neuron", "filter", "head"]


def space_of(pipeline, kind: str) -> ComponentSpace:
    return ComponentSpace.of(pipeline, kind, "attention" if kind == "weight" else None)


def slow_j(denoiser, recording, space: ComponentSpace, ablation: Ablation) -> Tensor:
    call = merge_calls(recording.calls)
    with torch.no_grad():
        return ConceptErasure()(call.run(ablated_copy(denoiser, space, ablation)), call).double().mean()


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("rows_per_pass", [1, 4, 30])
@pytest.mark.parametrize("kind", KINDS)
def test_j_is_that_of_ablated_copies(pipeline, recording, kind: str, rows_per_pass: int) -> None:
    space = space_of(pipeline, kind)
    ablations = [Ablation.random(space.n, 0.2, seed) for seed in range(4)] + [Ablation.from_indices(space.n, [])]
    found = objective_under_ablations(
        pipeline.unet, recording, ConceptErasure(), space, ablations, rows_per_pass=rows_per_pass, progress=False
    )
    assert_close(found, torch.stack([slow_j(pipeline.unet, recording, space, ablation) for ablation in ablations]))


@pytest.mark.parametrize("rows_per_pass", [2, 13, 60])
@pytest.mark.parametrize("kind", KINDS)
def test_ablated_gradient_is_the_trapezoid_rule(pipeline, recording, kind: str, rows_per_pass: int) -> None:
    space = space_of(pipeline, kind)
    parts = 4
    found, partitions = ablated_gradient_scores(
        pipeline.unet,
        recording,
        ConceptErasure(),
        space,
        fraction=1 / parts,
        ablated_weight=0.5,
        seed=5,
        rows_per_pass=rows_per_pass,
        progress=False,
    )
    kept, ablated = torch.zeros(2, space.n)
    for ablation in Ablation.balanced_partition(space.n, parts, seed=5):
        gradient = slow_gradient(pipeline.unet, recording, space, ablation)
        kept += torch.where(ablation.mask, 0, gradient) / (parts - 1)
        ablated += torch.where(ablation.mask, gradient, 0)
    assert partitions == 1 and found.ablated_weight == 0.5
    assert_close(found.values, (kept + ablated) / 2)


def test_a_stopped_run_goes_on_where_it_was(pipeline, recording, tmp_path, monkeypatch) -> None:
    import cad_fast.attribution.methods.ablated_gradient as ablated

    attributor = Attributor(pipeline, kind="neuron", method="ablated_gradient", fraction=0.25)
    expected = attributor.run(recording, rows_per_pass=4, progress=False)
    passes = interrupt(monkeypatch, ablated, "gather", 6)
    with pytest.raises(KeyboardInterrupt, match="resume=True"):
        attributor.run(recording, rows_per_pass=4, output_dir=tmp_path, progress=False)
    assert (tmp_path / STATE_NAME).exists()
    scores = attributor.run(recording, rows_per_pass=4, output_dir=tmp_path, resume=True, progress=False)
    total = scores.provenance["cost"]["forward_passes"]
    assert len(passes) == total + 1  # the stopped pass is done again, and no other
    assert torch.equal(scores.values, expected.values)
    assert torch.equal(Scores.load(tmp_path).values, expected.values)


def test_exact_is_ablating_one_at_a_time(pipeline, recording) -> None:
    attributor = Attributor(pipeline, kind="head", method="exact")
    scores = attributor.run(recording, progress=False)
    intact = slow_j(pipeline.unet, recording, scores.space, Ablation.from_indices(len(scores), []))
    alone = [
        slow_j(pipeline.unet, recording, scores.space, Ablation.from_indices(len(scores), [number]))
        for number in range(len(scores))
    ]
    assert_close(scores.values, intact - torch.stack(alone))
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


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "svm"}, ValueError, "unknown method 'svm': expected one of gradient, ablated_gradient"),
        ({"method": "exact", "solver": "ols"}, TypeError, "method 'exact' has no option 'solver'; it has: none"),
        ({"method": "gradient", "fraction": 0.1}, TypeError, "no option 'fraction'; it has: via"),
        ({"method": "regression", "solver": "svm"}, ValueError, "unknown solver 'svm'"),
        ({"method": "regression", "draw": "dice"}, ValueError, "unknown draw 'dice'"),
        ({"method": "regression", "ablations": 1}, ValueError, "ablations is 1, expected at least 3"),
    ],
)
def test_wrong_settings(pipeline, arguments, error, message: str) -> None:
    with pytest.raises(error, match=message):
        Attributor(pipeline, **arguments)


def test_wrong_fractions(pipeline, recording, monkeypatch) -> None:
    with pytest.raises(ValueError, match=r"fraction is 0\.7, expected more than 0 and at most 0\.5"):
        parts_of(0.7, 100)
    with pytest.raises(ValueError, match="would cut 10 components into 20 ablations"):
        parts_of(0.05, 10)
    monkeypatch.setattr("cad_fast.attribution.methods.exact.MOST_EXACT", 10)
    with pytest.raises(ValueError, match="exact takes one ablation per component"):
        Attributor(pipeline, method="exact").run(recording, progress=False)


@pytest.mark.parametrize("method", ["ablated_gradient", "regression", "exact"])
def test_a_denoiser_that_has_changed_since_the_recording_is_refused(pipeline, recording, method) -> None:
    space = ComponentSpace.of(pipeline, "head")
    with (
        Edit.from_indices("gone", space, torch.arange(0, space.n, 2)).applied(pipeline),
        pytest.raises(ValueError, match="has changed since"),
    ):
        Attributor(pipeline, None, space, method=method, **({"fraction": 0.2} if method != "exact" else {})).run(
            recording, progress=False
        )
