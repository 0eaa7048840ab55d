"""The linear fits against textbook formulas and brute force, on random ablations of a known linear J."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cad_fast import Ablation
from cad_fast.attribution.regression import solvers
from cad_fast.attribution.regression.design import Design
from cad_fast.attribution.regression.solvers import fit, fit_all, predict
from tests.attribution.regression.common import N, ablations, kept, noisy, truth


@pytest.mark.parametrize("factor", [0.0, -1.0, 0.5])
@pytest.mark.parametrize("solver", ["ols", "ridge"])
def test_a_linear_j_is_recovered(solver: str, factor: float) -> None:
    drawn, others = ablations(200, factor=factor), ablations(30, factor=factor, first=1000)
    found = fit(Design.of(drawn), noisy(drawn, truth(), 0), solver)
    assert torch.allclose(found.alpha, truth(), atol=1e-3)
    assert torch.allclose(predict(found, Design.of(others)), noisy(others, truth(), 0), atol=1e-2)


def test_ols_is_numpys() -> None:
    drawn = ablations(80)
    j = noisy(drawn, truth(), 1.0)
    found = fit(Design.of(drawn), j, "ols", standard_errors=True)
    x = torch.cat([torch.ones(80, 1, dtype=torch.float64), kept(drawn)], 1)
    expected = np.linalg.lstsq(x.numpy(), j.numpy(), rcond=None)[0]
    np.testing.assert_allclose(found.alpha, expected[1:], atol=1e-9)
    assert found.intercept == pytest.approx(expected[0])
    variance = float((j - x @ torch.from_numpy(expected)).square().sum()) / (80 - N - 1)
    covariance = variance * torch.linalg.inv(x.T @ x)
    assert torch.allclose(found.standard_error, covariance.diagonal()[1:].sqrt())


def test_leaving_one_out_of_ols_is_refitting() -> None:
    drawn = ablations(70)
    j = noisy(drawn, truth(), 1.0)
    found = fit(Design.of(drawn), j, "ols")
    for row in (0, 13, 69):
        rest = [number for number in range(70) if number != row]
        without = fit(Design.of([drawn[number] for number in rest]), j[rest], "ols")
        assert float(predict(without, Design.of([drawn[row]]))) == pytest.approx(float(found.loo[row]), abs=1e-8)


def test_a_prior_helps_where_there_are_few_ablations() -> None:
    drawn, others = ablations(25), ablations(60, first=1000)
    j, expected = noisy(drawn, truth(), 0.3), noisy(others, truth(), 0)
    prior = 0.5 * truth() + 0.1 * truth(seed=1)

    def r(found: solvers.Fit) -> float:
        return float(torch.corrcoef(torch.stack([predict(found, Design.of(others)), expected]))[0, 1])

    without, with_prior = fit(Design.of(drawn), j), fit(Design.of(drawn), j, prior=prior)
    assert r(with_prior) > 0.95 > r(without)
    assert with_prior.prior_scale == pytest.approx(2, rel=0.2)
    assert predict(with_prior, Design.of(drawn)).mean() == pytest.approx(float(j.mean()))


def test_lasso_finds_the_few() -> None:
    pytest.importorskip("sklearn")
    sparse = torch.zeros(N, dtype=torch.float64)
    sparse[[3, 17, 31]] = torch.tensor([2.0, -3.0, 1.5], dtype=torch.float64)
    drawn = ablations(120)
    found = fit(Design.of(drawn), noisy(drawn, sparse, 0.1), "lasso")
    assert set(found.alpha.abs().topk(3).indices.tolist()) == {3, 17, 31}
    assert int((found.alpha.abs() < 0.05).sum()) >= N - 6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Design.of([]), "needs ablations, got none"),
        (lambda: Design.of([*ablations(2), Ablation.random(9, 0.5, 0)]), "ablation 2 is of 9 components"),
        (lambda: Design.of([*ablations(2), *ablations(1, factor=0.5)]), "ablation 2 has factor 0.5, the first 0.0"),
        (lambda: fit(Design.of(ablations(5)), torch.ones(4)), r"j must have shape \(5,\)"),
        (lambda: fit(Design.of(ablations(2)), torch.ones(2)), "at least 3 ablations, got 2"),
        (lambda: fit(Design.of(ablations(3)), torch.tensor([1, float("nan"), 2])), "j is nan for ablation 1"),
        (lambda: fit(Design.of(ablations(5)), torch.ones(5), "svm"), "unknown solver 'svm': expected one of ols"),
        (lambda: fit(Design.of(ablations(40)), torch.ones(40), "ols"), r"ols needs more ablations .* \(47\), got 40"),
        (lambda: fit(Design.of(ablations(60, 0.0)), torch.rand(60), "ols"), "do not tell all components apart"),
        (lambda: fit(Design.of(ablations(5)), torch.ones(5), prior=torch.ones(3)), r"prior must have shape \(45,\)"),
    ],
)
def test_errors(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("solver", ["ols", "ridge"])
def test_targets_together_are_targets_alone(solver: str) -> None:
    drawn = ablations(90)
    j = torch.stack([noisy(drawn, truth(seed), 1.0 + seed) for seed in range(3)])
    priors = [None, truth(9), truth(1)]
    together = fit_all(Design.of(drawn), j, solver, priors=priors, standard_errors=True)
    for one, target, prior in zip(together, j, priors, strict=True):
        alone = fit(Design.of(drawn), target, solver, prior=prior, standard_errors=True)
        for name in ("alpha", "loo", "standard_error"):
            torch.testing.assert_close(getattr(one, name), getattr(alone, name))
        assert (one.intercept, one.penalty) == (pytest.approx(alone.intercept), alone.penalty)
