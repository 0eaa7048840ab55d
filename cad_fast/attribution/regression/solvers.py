"""Linear fits of J on random ablations: least squares, ridge (two ways), lasso, each also on the residual of a prior.

The model is that of COAR (arXiv 2404.11534, equation 3): J = c + sum over the components of alpha_i m_i, where m_i is 1
for a component that is kept and the ablation's factor for one that is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...choices import SOLVERS, Solver
from ...extras import require
from .design import Design
from .lsmr import lsmr
from .ridge import ridge


@dataclass(frozen=True)
class Fit:
    """A linear fit of J.

    Args:
        alpha: float64 [n], the scores.
        intercept: c.
        solver: Which solver it is of.
        penalty: Lambda of ridge and lsmr, or lasso's alpha. None for ols.
        loo: float64 [m], J of each ablation by a fit without it. None for lasso and lsmr.
        standard_error: float64 [n]. None unless asked for.
        prior_scale: What the prior was multiplied by. None without a prior.
    """

    alpha: Tensor
    intercept: float
    solver: Solver
    penalty: float | None = None
    loo: Tensor | None = None
    standard_error: Tensor | None = None
    prior_scale: float | None = None


def fit(
    design: Design,
    j: Tensor,
    solver: Solver = "ridge",
    *,
    prior: Tensor | None = None,
    standard_errors: bool = False,
) -> Fit:
    """Fit J float [m] of one target to the ablations of ``design``; see ``fit_all``."""
    if j.shape != (len(design),):
        raise ValueError(f"j must have shape ({len(design)},), one value per ablation, got {tuple(j.shape)}")
    return fit_all(design, j[None], solver, priors=[prior], standard_errors=standard_errors)[0]


def fit_all(
    design: Design,
    j: Tensor,
    solver: Solver = "ridge",
    *,
    priors: Sequence[Tensor | None] | None = None,
    standard_errors: bool = False,
) -> list[Fit]:
    """Fit J of many targets to the ablations of a design. Ridge solves them together.

    The solvers:

    - ols: ordinary least squares; needs more ablations than components.
    - ridge: lambda by leave-one-out in closed form, for any m that an [m, m] matrix fits memory for; see ``ridge``.
    - lsmr: the same by an iterative method that needs no such matrix, lambda by holding out a tenth (extra ``lsmr``).
    - lasso: scikit-learn's LassoCV, penalty by 5-fold cross-validation (extra ``lasso``).

    Args:
        design: m ablations of n components.
        j: float [t, m], one target per row.
        solver: One of the above.
        priors: Per target an earlier estimate, float [n], or None. The fit is of what the prior, scaled by least
            squares, leaves unexplained, and the two are added.
        standard_errors: Whether to give them; ols and ridge can.

    Returns:
        One ``Fit`` per target.

    Raises:
        ValueError: The lengths do not fit, J is not finite, or the solver cannot do it.
    """
    priors = [None] * len(j) if priors is None else priors
    _check(design, j, solver, priors)
    j = j.double()
    predicted = [None if prior is None else design.times(prior) for prior in priors]
    scales = [0.0 if p is None else _least_squares_scale(p, one) for p, one in zip(predicted, j, strict=True)]
    base = torch.stack(
        [torch.zeros(len(design)).double() if p is None else s * p for s, p in zip(scales, predicted, strict=True)]
    )
    if solver == "ridge":
        fits = _ridge(design, j - base, standard_errors)
    else:
        solve = {"ols": _ols, "lasso": _lasso, "lsmr": _lsmr}[solver]
        fits = [solve(design, one, standard_errors) for one in j - base]
    return [
        one if prior is None else _with_prior(design, j[t], one, prior, scales[t], base[t])
        for t, (one, prior) in enumerate(zip(fits, priors, strict=True))
    ]


def _check(design: Design, j: Tensor, solver: str, priors: Sequence[Tensor | None]) -> None:
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}: expected one of {', '.join(SOLVERS)}")
    if j.dim() != 2 or j.shape[1] != len(design):
        raise ValueError(f"j must have shape (targets, {len(design)}), one value per ablation, got {tuple(j.shape)}")
    if not bool(j.isfinite().all()):
        target, ablation = (~j.isfinite()).nonzero()[0].tolist()
        of = f" of target {target}" if len(j) > 1 else ""
        raise ValueError(f"j{of} is {float(j[target, ablation])} for ablation {ablation}")
    if len(design) < 3:
        raise ValueError(f"a regression needs at least 3 ablations, got {len(design)}")
    if len(priors) != len(j):
        raise ValueError(f"there are {len(priors)} priors for {len(j)} targets")
    for prior in priors:
        if prior is not None and prior.shape != (design.n,):
            raise ValueError(f"prior must have shape ({design.n},), got {tuple(prior.shape)}")


def _least_squares_scale(predicted: Tensor, j: Tensor) -> float:
    norm = float(predicted @ predicted)
    return float(predicted @ (j - j.mean())) / norm if norm > 0 else 0.0


def _with_prior(design: Design, j: Tensor, residual: Fit, prior: Tensor, scale: float, base: Tensor) -> Fit:
    """Add the fit of what ``base``, the scaled prior's predictions, left of J, and the prior: a fit of J."""
    alpha = residual.alpha + scale * prior.double()
    return replace(
        residual,
        alpha=alpha,
        intercept=_intercept(design, j, alpha),
        loo=None if residual.loo is None else residual.loo + base,
        prior_scale=scale,
    )


def predict(model: Fit, design: Design) -> Tensor:
    """Return J float64 [m] that a fit expects of other ablations."""
    return model.intercept + design.times(model.alpha) + float(design.mean_kept() @ model.alpha)


def _intercept(design: Design, j: Tensor, alpha: Tensor) -> float:
    return float(j.mean() - design.mean_kept() @ alpha)


def _ols(design: Design, j: Tensor, standard_errors: bool) -> Fit:
    m, n = len(design), design.n
    if m <= n + 1:
        raise ValueError(f"ols needs more ablations than components and one more ({n + 2}), got {m}: use ridge")
    x = torch.cat([part for _, part in design.columns()], 1)
    q, r = torch.linalg.qr(x)
    if float(r.diagonal().abs().min()) <= 1e-10 * float(r.diagonal().abs().max()):
        raise ValueError("ols: the ablations do not tell all components apart; draw more, or use ridge")
    centred = j - j.mean()
    alpha = torch.linalg.solve_triangular(r, (q.T @ centred)[:, None], upper=True)[:, 0]
    residual = centred - x @ alpha
    leverage = q.square().sum(1) + 1 / m
    error = None
    if standard_errors:
        variance = float(residual @ residual) / (m - n - 1)
        inverse = torch.linalg.solve_triangular(r, torch.eye(n, dtype=r.dtype), upper=True)
        error = (variance * inverse.square().sum(1)).sqrt()
    return Fit(alpha, _intercept(design, j, alpha), "ols", None, j - residual / (1 - leverage), error)


def _ridge(design: Design, y: Tensor, standard_errors: bool) -> list[Fit]:
    means = y.mean(1, keepdim=True)
    solved = ridge(design, y - means, standard_errors=standard_errors)
    errors = solved.standard_error
    return [
        Fit(
            alpha,
            _intercept(design, y[t], alpha),
            "ridge",
            float(solved.penalty[t]),
            y[t] - solved.loo_residual[t],
            None if errors is None else errors[t],
        )
        for t, alpha in enumerate(solved.alpha)
    ]


def _lsmr(design: Design, j: Tensor, standard_errors: bool) -> Fit:
    if standard_errors:
        raise ValueError("lsmr has no standard errors: use ridge or ols for them")
    solved = lsmr(design, j - j.mean())
    return Fit(solved.alpha, _intercept(design, j, solved.alpha), "lsmr", solved.penalty)


def _lasso(design: Design, j: Tensor, standard_errors: bool) -> Fit:
    if standard_errors:
        raise ValueError("lasso has no standard errors: use ridge or ols for them")
    linear_model = require("sklearn.linear_model", "lasso")
    x = torch.cat([part for _, part in design.columns()], 1).numpy()
    model = linear_model.LassoCV(cv=5, random_state=0, fit_intercept=True).fit(x, (j - j.mean()).numpy())
    alpha = torch.from_numpy(model.coef_).double()
    return Fit(alpha, _intercept(design, j, alpha), "lasso", float(model.alpha_))
