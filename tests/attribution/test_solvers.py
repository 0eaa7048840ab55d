"""The linear fits against textbook formulas and brute force, on random ablations of a known linear J."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cad_fast import Ablation
from cad_fast.attribution.regression import design as design_module
from cad_fast.attribution.regression import lsmr, ridge, solvers
from cad_fast.attribution.regression.design import Design, SeededDesign
from cad_fast.attribution.regression.solvers import fit, fit_all, predict

N = 45


def truth(seed: int = 0) -> Tensor:
    return torch.randn(N, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ablations(m: int, fraction: float = 0.3, factor: float = 0.0, first: int = 0) -> list[Ablation]:
    return [Ablation.random(N, fraction, seed, factor) for seed in range(first, first + m)]


def kept(drawn: list[Ablation]) -> Tensor:
    """The design written out: what each ablation multiplies each component's weights by, [m, n]."""
    x = torch.ones(len(drawn), N, dtype=torch.float64)
    for row, ablation in enumerate(drawn):
        x[row, ablation.indices] = ablation.factors
    return x


def noisy(drawn: list[Ablation], alpha: Tensor, noise: float) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return 3 + kept(drawn) @ alpha + noise * torch.randn(len(drawn), dtype=torch.float64, generator=generator)


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


def test_leaving_one_out_of_ols_is_refitting() -> None:
    drawn = ablations(70)
    j = noisy(drawn, truth(), 1.0)
    found = fit(Design.of(drawn), j, "ols")
    for row in (0, 13, 69):
        rest = [number for number in range(70) if number != row]
        without = fit(Design.of([drawn[number] for number in rest]), j[rest], "ols")
        assert float(predict(without, Design.of([drawn[row]]))) == pytest.approx(float(found.loo[row]), abs=1e-8)


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


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = ablations(60)
    j = noisy(drawn, truth(), 1.0)
    whole = fit(Design.of(drawn), j, standard_errors=True)
    monkeypatch.setattr(design_module, "CHUNK", 1)
    pieces = fit(Design.of(drawn), j, standard_errors=True)
    assert torch.allclose(whole.alpha, pieces.alpha)
    assert torch.allclose(whole.standard_error, pieces.standard_error)


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


def random_problem(m: int, n: int, targets: int) -> tuple[Design, Tensor]:
    """Targets of different strengths, so that their best penalties differ."""
    design = Design(SeededDesign(n, 0.2, 3, m).words, n)
    alpha = torch.randn(targets, n, dtype=torch.float64) * 10.0 ** torch.arange(targets).double()[:, None].neg()
    return design, design.times(alpha) + torch.randn(targets, m, dtype=torch.float64)


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


def test_lsmr_is_ridge() -> None:
    pytest.importorskip("scipy")
    design, j = random_problem(400, 150, 1)
    found = fit(design, j[0], "lsmr")
    x = torch.cat([part for _, part in design.columns()], 1)
    normal = x.T @ x + found.penalty * torch.eye(150)
    torch.testing.assert_close(
        found.alpha, torch.linalg.solve(normal, x.T @ (j[0] - j[0].mean())), rtol=1e-4, atol=1e-5
    )
    by_ridge = fit(design, j[0], "ridge")
    assert 1 / 5 < found.penalty / by_ridge.penalty < 5
    assert found.intercept == pytest.approx(by_ridge.intercept, rel=0.05)
    with pytest.raises(ValueError, match="lsmr has no standard errors"):
        fit(design, j[0], "lsmr", standard_errors=True)


def test_held_out_penalties_are_refits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small problem of the bidiagonalisation against solving without the ablations held out, for each penalty."""
    monkeypatch.setattr(lsmr, "CHECK_EVERY", 60)
    design, j = random_problem(100, 40, 1)
    y = j[0] - j[0].mean()
    seen = []
    solutions = lsmr.small_solutions

    def watched(*arguments: object) -> Tensor:
        seen.append(solutions(*arguments))
        return seen[-1]

    monkeypatch.setattr(lsmr, "small_solutions", watched)
    penalties = torch.tensor([0.5, 20.0, 700.0], dtype=torch.float64)
    chosen, _ = lsmr.best_held_out(design, y, penalties)
    held = torch.randperm(100, generator=torch.Generator().manual_seed(0))[:10]
    rest = torch.ones(100, dtype=torch.bool)
    rest[held] = False
    x = torch.cat([part for _, part in design.columns()], 1)
    errors, level = [], y[rest].mean()
    for number, penalty in enumerate(penalties):
        normal = x[rest].T @ x[rest] + penalty * torch.eye(40)
        alpha = torch.linalg.solve(normal, x[rest].T @ (y[rest] - level))
        assert float(alpha.norm()) == pytest.approx(float(seen[-1][:, number].norm()), rel=1e-6)
        errors.append(float((y[held] - level - x[held] @ alpha).square().mean()))
    assert chosen == float(penalties[torch.tensor(errors).argmin()])


@pytest.mark.parametrize("factor", [0.0, 0.5])
def test_seeds_are_the_bits_drawn_from_them(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    monkeypatch.setattr(design_module, "DRAWN_WORDS", 20)  # blocks of a few rows
    drawn = [Ablation.seeded(N, 0.3, 5, variant, factor) for variant in range(7, 60)]
    seeded, packed = SeededDesign(N, 0.3, 5, 53, first=7, factor=factor), Design.of(drawn)
    x = kept(drawn)
    x = x - x.mean(0)
    alpha, values = torch.randn(2, N, dtype=torch.float64), torch.randn(2, 53, dtype=torch.float64)
    for design in (seeded, packed):
        torch.testing.assert_close(design.times(alpha), alpha @ x.T)
        torch.testing.assert_close(design.transposed_times(values), values @ x)
        torch.testing.assert_close(design.mean_kept(), kept(drawn).mean(0))
    gram = ridge.CentredGram(seeded.counts(), factor)
    torch.testing.assert_close(gram.filled(torch.float64), x @ x.T)
    torch.testing.assert_close(gram.times(values.T), x @ x.T @ values.T)
    assert gram.trace() == pytest.approx(float((x @ x.T).trace()))
    assert torch.equal(seeded.transposed(), packed.transposed())
    assert torch.equal(seeded.words, packed.words)
