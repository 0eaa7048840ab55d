"""LSMR against ridge, and its penalties against refits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cad_fast.attribution.regression import lsmr
from cad_fast.attribution.regression.solvers import fit
from tests.attribution.regression.common import random_problem


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
