"""Ridge: against the textbook, both ways to solve it, its penalty and its standard errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cad_fast.attribution.regression import ridge
from cad_fast.attribution.regression.design import Design
from cad_fast.attribution.regression.solvers import fit
from tests.attribution.regression.common import N, ablations, kept, noisy, random_problem, truth


@pytest.mark.parametrize("m", [30, 90])
def test_ridge_is_the_textbooks_and_its_penalty_the_best_left_out(m: int) -> None:
    drawn = ablations(m)
    j = noisy(drawn, truth(), 2.0)
    found = fit(Design.of(drawn), j, "ridge")
    x = kept(drawn)
    centred = x - x.mean(0)
    inverse = torch.linalg.inv(centred.T @ centred + found.penalty * torch.eye(N))
    assert torch.allclose(found.alpha, inverse @ centred.T @ (j - j.mean()), atol=1e-8)

    def left_out(penalty: float) -> Tensor:
        predictions = torch.empty(m, dtype=torch.float64)
        for row in range(m):
            rest = torch.arange(m) != row
            mean = x[rest].mean(0)
            y, z = j[rest], x[rest] - mean
            alpha = torch.linalg.solve(z.T @ z + penalty * torch.eye(N), z.T @ (y - y.mean()))
            predictions[row] = y.mean() + (x[row] - mean) @ alpha
        return predictions

    # The closed form centres with all rows; refitting centres with the rest, which differs by O(1/m) of the penalty.
    assert torch.corrcoef(torch.stack([found.loo, left_out(found.penalty)]))[0, 1] > 0.999
    losses = [float((left_out(found.penalty * step) - j).square().mean()) for step in (0.2, 1.0, 5.0)]
    assert losses[1] <= 1.02 * min(losses)


def test_standard_errors_of_ridge_are_the_spread_over_noise() -> None:
    drawn = ablations(400)
    design, clean = Design.of(drawn), kept(drawn) @ truth()
    fits = []
    for seed in range(60):
        noise = torch.randn(400, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        fits.append(fit(design, clean + noise, "ridge", standard_errors=True))
    spread = torch.stack([one.alpha for one in fits]).std(0)
    claimed = torch.stack([one.standard_error for one in fits]).mean(0)
    assert float((claimed / spread).median()) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(("m", "n"), [(150, 400), (300, 90)])
def test_factoring_is_decomposing(m: int, n: int) -> None:
    """Both ways to solve large and small problems, at the penalties that the one for large problems chooses."""
    design, j = random_problem(m, n, 3)
    y = j - j.mean(1, keepdim=True)
    factored = ridge.Factored(design, y).fit(standard_errors=True)
    assert len(factored.penalty.unique()) > 1
    decomposed = ridge.Decomposed.of(design)
    for t in range(3):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ridge, "GRID", factored.penalty[t : t + 1] / decomposed.unit)
            expected = decomposed.fit(y[t : t + 1], True)
        torch.testing.assert_close(factored.alpha[t], expected.alpha[0], rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(factored.loo_residual[t], expected.loo_residual[0], rtol=2e-3, atol=1e-4)
        torch.testing.assert_close(factored.standard_error[t], expected.standard_error[0], rtol=2e-3, atol=1e-6)
        best = decomposed.fit(y[t : t + 1], False).loo_residual.square().mean()
        assert float(factored.loo_residual[t].square().mean()) < 1.02 * float(best)


@pytest.mark.parametrize(("shift", "factored"), [(None, True), (0, True), (-2, True), (2, True), (9, False)])
def test_one_target_of_a_small_problem_has_the_penalty_of_leaving_one_out(monkeypatch, shift, factored: bool) -> None:
    """Wherever the search begins: the numbers of the eigendecomposition, to which it falls back when it is too far."""
    monkeypatch.setattr(ridge, "LEAST_FACTORED", 100)
    design, j = random_problem(150, 400, 1)
    y = j - j.mean(1, keepdim=True)
    decomposed = ridge.Decomposed.of(design)
    expected = decomposed.fit(y, True)
    if shift is not None:
        best = int((ridge.GRID * decomposed.unit / expected.penalty - 1).abs().argmin())
        losses = (torch.arange(len(ridge.GRID)) - best - shift).abs()[None]
        monkeypatch.setattr(ridge.Factored, "generalised_losses", lambda *_: losses)
    of, used = ridge.Decomposed.of, []
    monkeypatch.setattr(ridge.Decomposed, "of", lambda design: used.append(1) or of(design))
    found = ridge.ridge(design, y, standard_errors=True)
    assert bool(used) != factored
    torch.testing.assert_close(found.penalty, expected.penalty, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.alpha, expected.alpha, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found.loo_residual, expected.loo_residual, rtol=2e-3, atol=1e-4)
    assert found.standard_error is not None and expected.standard_error is not None
    torch.testing.assert_close(found.standard_error, expected.standard_error, rtol=2e-3, atol=1e-6)


def test_factoring_falls_back_to_double_precision() -> None:
    """At a penalty of 1e-6 of the mean eigenvalue, single precision has no factor, or one that leads nowhere."""
    design, j = random_problem(200, 60, 1)
    y = j - j.mean(1, keepdim=True)
    factored = ridge.Factored(design, y)
    factor, dual = factored.solve(1e-6 * factored.unit, y)
    assert factor.lower.dtype == torch.float64
    x = torch.cat([part for _, part in design.columns()], 1)
    left = x @ (x.T @ dual[0]) + 1e-6 * factored.unit * dual[0] - y[0]
    assert float(left.norm() / y.norm()) < 1e-8


def test_lanczos_is_the_quadratic_form() -> None:
    x = torch.randn(60, 40, dtype=torch.float64)
    k, start = x @ x.T, torch.randn(60, 3, dtype=torch.float64)
    start[:, 2] = 0
    nodes, weights = ridge.lanczos(k, start, 40)
    for penalty in (0.1, 5.0):
        inverse = torch.linalg.inv(k + penalty * torch.eye(60))
        expected = (start * (inverse @ inverse @ start)).sum(0)
        torch.testing.assert_close((weights / (nodes + penalty).square()).sum(1), expected, rtol=1e-6, atol=1e-12)
