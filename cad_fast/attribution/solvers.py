"""Linear fits of J on random ablations: ordinary least squares, ridge, lasso, each also on the residual of a prior.

The model is that of COAR (arXiv 2404.11534, equation 3): J = c + sum over the components of alpha_i m_i, where m_i is 1
for a component that is kept and the ablation's factor for one that is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..ablation import Ablation
from ..extras import require
from ..ops import unpack_bits

Solver = Literal["ols", "ridge", "lasso"]
SOLVERS: tuple[Solver, ...] = ("ols", "ridge", "lasso")
# Elements of the design that are unpacked at a time, as float64: 256 MiB.
_CHUNK = 2**25
# Ridge parameters tried, as multiples of the mean eigenvalue of the centred design's Gram matrix.
_RIDGE_GRID = torch.logspace(-4, 4, 49, dtype=torch.float64)


class Design:
    """m random ablations of n components as the matrix of a regression; held as packed bits, centred on use."""

    def __init__(self, words: Tensor, n: int, factor: float = 0.0) -> None:
        """``words`` int32 [m, ceil(n / 32)], a bit per ablated component; ``factor`` is what ablated weights keep."""
        self.words, self.n, self.factor = words, n, factor
        self._ablated_mean = torch.cat([chunk.mean(0) for _, chunk in self._bits()])

    @classmethod
    def of(cls, ablations: Sequence[Ablation]) -> Design:
        """Raises ValueError when there are none, or their n or factor differ."""
        if not ablations:
            raise ValueError("a regression needs ablations, got none")
        first = ablations[0]
        if isinstance(first.factor, Tensor):
            raise ValueError("a regression needs ablations with one factor, got one factor per component")
        for number, ablation in enumerate(ablations):
            if ablation.n != first.n:
                raise ValueError(f"ablation {number} is of {ablation.n} components, the first of {first.n}")
            if ablation.factor != first.factor:
                raise ValueError(f"ablation {number} has factor {ablation.factor}, the first {first.factor}")
        return cls(torch.stack([ablation.packed for ablation in ablations]), first.n, first.factor)

    def __len__(self) -> int:
        return len(self.words)

    def select(self, rows: Tensor) -> Design:
        """The design of some of the ablations, int64 [k] or bool [m]."""
        return Design(self.words[rows], self.n, self.factor)

    def _bits(self) -> Iterator[tuple[slice, Tensor]]:
        """Blocks of columns, with their bits as float64 [m, columns]."""
        step = max(1, _CHUNK // (32 * max(1, len(self)))) * 32
        for start in range(0, self.n, step):
            columns = min(step, self.n - start)
            words = self.words[:, start // 32 : (start + columns + 31) // 32]
            yield slice(start, start + columns), unpack_bits(words, columns).double()

    def columns(self) -> Iterator[tuple[slice, Tensor]]:
        """Blocks of columns of the centred design, float64 [m, columns]."""
        for place, bits in self._bits():
            yield place, (self.factor - 1) * (bits - self._ablated_mean[place])

    def gram(self) -> Tensor:
        """X X^T of the centred design, float64 [m, m]."""
        total = torch.zeros(len(self), len(self), dtype=torch.float64)
        for _, x in self.columns():
            total += x @ x.T
        return total

    def transposed_times(self, values: Tensor) -> Tensor:
        """X^T values, float64 [n], of the centred design and [m]."""
        return torch.cat([x.T @ values for _, x in self.columns()])

    def times(self, alpha: Tensor) -> Tensor:
        """X alpha, float64 [m], of the centred design and [n]: predictions less their mean over these ablations."""
        alpha = alpha.double()
        return sum((x @ alpha[place] for place, x in self.columns()), torch.zeros(len(self), dtype=torch.float64))

    def mean_kept(self) -> Tensor:
        """The mean of m_i over the ablations, float64 [n]."""
        return 1 + (self.factor - 1) * self._ablated_mean


@dataclass(frozen=True)
class Fit:
    """alpha float64 [n] and what is known about it.

    ``loo`` float64 [m]: each ablation's J as predicted by a fit without it (None for lasso). ``standard_error`` float64
    [n], None unless asked for. ``penalty`` is ridge's lambda or lasso's alpha.
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
    """Fit J float [m] to the ablations of ``design``.

    ols: ordinary least squares; needs more ablations than components.
    ridge: lambda by leave-one-out in closed form (Golub, Heath & Wahba 1979 give the identity), for any m.
    lasso: scikit-learn's LassoCV, penalty by 5-fold cross-validation (extra ``lasso``).
    ``prior`` float [n]: fit what a prior estimate, scaled by least squares, leaves unexplained, and add the two.
    Raises ValueError when the lengths do not fit, J is not finite, or ols has too few ablations.
    """
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}: expected one of {', '.join(SOLVERS)}")
    if j.shape != (len(design),):
        raise ValueError(f"j must have shape ({len(design)},), one value per ablation, got {tuple(j.shape)}")
    if not bool(j.isfinite().all()):
        raise ValueError(f"j is {float(j[~j.isfinite()][0])} for ablation {int((~j.isfinite()).nonzero()[0])}")
    if len(design) < 3:
        raise ValueError(f"a regression needs at least 3 ablations, got {len(design)}")
    j = j.double()
    scale, base = 0.0, torch.zeros_like(j)
    if prior is not None:
        if prior.shape != (design.n,):
            raise ValueError(f"prior must have shape ({design.n},), got {tuple(prior.shape)}")
        predicted = design.times(prior)
        norm = float(predicted @ predicted)
        scale = float(predicted @ (j - j.mean())) / norm if norm > 0 else 0.0
        base = scale * predicted
    solve = {"ols": _ols, "ridge": _ridge, "lasso": _lasso}[solver]
    found = solve(design, j - base, standard_errors)
    if prior is None:
        return found
    alpha = found.alpha + scale * prior.double()
    return replace(
        found,
        alpha=alpha,
        intercept=_intercept(design, j, alpha),
        loo=None if found.loo is None else found.loo + base,
        prior_scale=scale,
    )


def predict(found: Fit, design: Design) -> Tensor:
    """J float64 [m] that a fit expects of other ablations."""
    return found.intercept + design.times(found.alpha) + float(design.mean_kept() @ found.alpha)


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


def _ridge(design: Design, j: Tensor, standard_errors: bool) -> Fit:
    centred = j - j.mean()
    values, vectors = torch.linalg.eigh(design.gram())
    values = values.clamp(min=0)
    along = vectors.T @ centred
    unit = float(values.mean()) or 1.0

    def left_out(penalty: Tensor) -> tuple[Tensor, Tensor]:
        shrunk = values / (values + penalty)
        residual = centred - vectors @ (shrunk * along)
        leverage = vectors.square() @ shrunk + 1 / len(j)
        return residual, residual / (1 - leverage)

    penalties = unit * _RIDGE_GRID
    losses = torch.stack([left_out(penalty)[1].square().mean() for penalty in penalties])
    penalty = penalties[losses.argmin()]
    dual = vectors @ (along / (values + penalty))
    alpha = design.transposed_times(dual)
    _, loo_residual = left_out(penalty)
    error = None
    if standard_errors:
        # Cov(alpha) = s^2 X^T (K + lambda)^-2 X for independent errors of variance s^2 in J.
        spread = float(loo_residual.square().mean().sqrt())
        inverse = vectors / (values + penalty) @ vectors.T
        error = spread * torch.cat([(inverse @ x).norm(dim=0) for _, x in design.columns()])
    return Fit(alpha, _intercept(design, j, alpha), "ridge", float(penalty), j - loo_residual, error)


def _lasso(design: Design, j: Tensor, standard_errors: bool) -> Fit:
    if standard_errors:
        raise ValueError("lasso has no standard errors: use ridge or ols for them")
    linear_model = require("sklearn.linear_model", "lasso")
    x = torch.cat([part for _, part in design.columns()], 1).numpy()
    model = linear_model.LassoCV(cv=5, random_state=0, fit_intercept=True).fit(x, (j - j.mean()).numpy())
    alpha = torch.from_numpy(model.coef_).double()
    return Fit(alpha, _intercept(design, j, alpha), "lasso", float(model.alpha_))
