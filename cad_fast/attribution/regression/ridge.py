"""Ridge regression on many ablations for many targets, the penalty of each by leave-one-out in closed form.

With K = X X^T of the centred design, G = (K + lambda)^-1 and y centred, the coefficients are X^T G y, and what a fit
without ablation i leaves of y_i is lambda (G y)_i / (lambda G_ii - 1/m): the identity of Golub, Heath & Wahba (1979)
with an intercept. Small problems decompose K, or X^T X where that is smaller, and have all penalties at once. Large
ones choose by generalised cross-validation, which puts the mean of G_ii in the place of each, and factor K + lambda for
what was chosen: in single precision, the solutions brought to double precision by refinement against the exact integers
that K is made of. A small one of a single target begins like a large one and goes on along the grid to the minimum of
leave-one-out itself. What is left out of each ablation is exact every way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...ops.on_host import gram_bits
from .design import Design

# Penalties tried, as multiples of the mean eigenvalue of K.
GRID = torch.logspace(-4, 4, 49, dtype=torch.float64)
# Above this an eigendecomposition is not worth what it saves: it takes 2.6 seconds at this size on 2 cores.
MOST_DECOMPOSED = 3000
# One target needs some three factorisations, each a tenth of an eigendecomposition's cost; from this size on they pay.
LEAST_FACTORED, MOST_TRIED = 700, 5
# Lanczos steps and probes of the trace: where leave-one-out decides in the end, a start near by will do.
ENOUGH, NEAR_BY = (40, 8), (24, 8)
TOLERANCE = 1e-9
_BLOCK = 1024
# Narrower: columns of a triangular inverse begin with zeros, which a block of them shares only in part.
_INVERSE_BLOCK = 256


@dataclass(frozen=True)
class Ridge:
    """Fits of t targets, float64.

    Args:
        alpha: [t, n], the coefficients.
        penalty: [t], lambda.
        loo_residual: [t, m], what a fit without the ablation leaves of it.
        standard_error: [t, n], or None.
    """

    alpha: Tensor
    penalty: Tensor
    loo_residual: Tensor
    standard_error: Tensor | None


class CentredGram:
    """K = X X^T of a centred design, [m, m], from the counts that its ablations have in common."""

    def __init__(self, counts: Tensor, factor: float) -> None:
        self.counts, self.scale = counts, (factor - 1) ** 2
        self.row_means = counts.sum(1, dtype=torch.int64).double() / len(counts)
        self.mean = self.row_means.mean()

    def trace(self) -> float:
        return self.scale * float(self.counts.diagonal().double().sum() - len(self.counts) * self.mean)

    def filled(self, dtype: torch.dtype, penalty: float = 0.0, constant: float = 0.0) -> Tensor:
        """Return K + penalty + constant / m as a matrix, every element rounded once."""
        m = len(self.counts)
        k = torch.empty(m, m, dtype=dtype)
        for start in range(0, m, _BLOCK):
            rows = slice(start, start + _BLOCK)
            centred = self.counts[rows].double() - self.row_means[rows, None] - (self.row_means - self.mean)
            k[rows] = centred.mul_(self.scale).add_(constant / m)
        k.diagonal().add_(penalty)
        return k

    def times(self, x: Tensor) -> Tensor:
        """Return K x, float64 [m, t]."""
        x = x - x.mean(0)
        parts = [part.double() @ x for part in self.counts.split(_BLOCK)]
        y = torch.cat(parts)
        return self.scale * (y - y.mean(0))


def ridge(design: Design, y: Tensor, *, standard_errors: bool = False) -> Ridge:
    """Fit every target of ``y``, float64 [t, m], centred, on the same ablations.

    Raises:
        ValueError: The condition of the problem is too bad.
    """
    m, n = len(design), design.n
    if min(m, n) > MOST_DECOMPOSED:
        return Factored(design, y).fit(standard_errors)
    if len(y) == 1 and LEAST_FACTORED <= m <= n:
        left_out = Factored(design, y).fit_left_out(standard_errors)
        if left_out is not None:
            return left_out
    return Decomposed.of(design).fit(y, standard_errors)


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues ascending [k] and eigenvectors [k, k] of a symmetric matrix, float64, on the CPU.

    By numpy, whose library takes 2.6 seconds at k = 3000 on 2 cores of an AMD EPYC where torch's (MKL) takes 4.0.
    """
    values, vectors = np.linalg.eigh(matrix.numpy())
    return torch.from_numpy(values), torch.from_numpy(vectors)


@dataclass(frozen=True)
class Decomposed:
    """The centred design as U S V^T: ``squares`` [k] are S^2, ``left`` is U [m, k], ``right`` is V [n, k] or None."""

    design: Design
    squares: Tensor
    left: Tensor
    right: Tensor | None
    unit: float

    @classmethod
    def of(cls, design: Design) -> Decomposed:
        m, n = len(design), design.n
        if m <= n:
            gram = CentredGram(design.counts(), design.factor)
            values, vectors = eigh(gram.filled(torch.float64))
            return cls(design, values.clamp(min=0), vectors, None, gram.trace() / m or 1.0)
        together = gram_bits(design.transposed()).double()
        ablated = together.diagonal().clone()
        together -= ablated[:, None] * (ablated / m)
        together *= (design.factor - 1) ** 2
        unit = float(together.diagonal().sum()) / m or 1.0
        values, vectors = eigh(together)
        kept = values > 1e-12 * float(values[-1])
        values, vectors = values[kept], vectors[:, kept]
        left = torch.zeros(m, len(values), dtype=torch.float64)
        for place, x in design.columns():
            left += x @ vectors[place]
        return cls(design, values, left / values.sqrt(), vectors, unit)

    def fit(self, y: Tensor, standard_errors: bool) -> Ridge:
        penalties = self.unit * GRID
        shrunk = self.squares[:, None] / (self.squares[:, None] + penalties)
        remaining = 1 - self.left.square() @ shrunk - 1 / len(self.left)
        chosen, left_out = [], []
        for one in y:
            along = self.left.T @ one
            residuals = (one[:, None] - self.left @ (shrunk * along[:, None])) / remaining
            best = residuals.square().mean(0).argmin()
            chosen.append(penalties[best])
            left_out.append(residuals[:, best])
        penalty, loo_residual = torch.stack(chosen), torch.stack(left_out)
        scaled = (y @ self.left) / (self.squares + penalty[:, None])
        if self.right is None:
            alpha = self.design.transposed_times(scaled @ self.left.T)
        else:
            alpha = (scaled * self.squares.sqrt()) @ self.right.T
        error = self._standard_errors(penalty, loo_residual) if standard_errors else None
        return Ridge(alpha, penalty, loo_residual, error)

    def _standard_errors(self, penalty: Tensor, loo_residual: Tensor) -> Tensor:
        """Cov(alpha) = s^2 X^T G^2 X for independent errors of variance s^2 in J."""
        spread = loo_residual.square().mean(1, keepdim=True).sqrt()
        inverse = (self.squares + penalty[:, None]).pow(-2)
        if self.right is not None:
            return spread * ((inverse * self.squares) @ self.right.square().T).sqrt()
        parts = [(inverse @ (self.left.T @ x).square()).sqrt() for _, x in self.design.columns()]
        return spread * torch.cat(parts, 1)


class Factored:
    """Penalties by generalised cross-validation on Lanczos quadratures, then one factorisation for each of them."""

    def __init__(self, design: Design, y: Tensor) -> None:
        self.design, self.y = design, y
        self.gram = CentredGram(design.counts(), design.factor)
        self.unit = self.gram.trace() / len(design) or 1.0
        self._kept: dict[float, tuple[Factor, Tensor]] = {}
        self._single: Tensor | None = None  # K + unit / m, where it is factored again and again

    def fit(self, standard_errors: bool) -> Ridge:
        return self._fit_at(self.generalised_losses(*ENOUGH).argmin(1), standard_errors)

    def fit_left_out(self, standard_errors: bool) -> Ridge | None:
        """Fit one target with the penalty that is best by leave-one-out. None where that takes too many steps."""
        self._single = self.gram.filled(torch.float32, constant=self.unit)
        place = self._downhill(int(self.generalised_losses(*NEAR_BY).argmin()))
        return None if place is None else self._fit_at(torch.tensor([place]), standard_errors)

    def _fit_at(self, places: Tensor, standard_errors: bool) -> Ridge:
        """Fit with the penalties at these places of the grid, int64 [t]."""
        penalty = self.unit * GRID[places]
        dual, loo_residual = torch.empty(2, *self.y.shape, dtype=torch.float64)
        error = torch.empty(len(self.y), self.design.n, dtype=torch.float64) if standard_errors else None
        for value in tqdm(penalty.unique().tolist(), desc="penalties", leave=False, disable=None):
            rows = penalty == value
            factor, dual[rows], loo_residual[rows] = self._left_out(value, self.y[rows])
            if error is not None:
                spread = loo_residual[rows].square().mean(1, keepdim=True).sqrt()
                for place, x in self.design.columns():
                    error[rows, place] = spread * factor.inverse_times(x).norm(dim=0)
            del factor  # before the next: two of them need not be in memory
        return Ridge(self.design.transposed_times(dual), penalty, loo_residual, error)

    def _downhill(self, place: int) -> int | None:
        """Return the nearest place on the grid where leave-one-out has a minimum. None if it is too far."""
        losses: dict[int, float] = {}
        while len(losses) < MOST_TRIED:
            near = [at for at in (place, place - 1, place + 1) if 0 <= at < len(GRID)]
            for at in near:
                if at not in losses:
                    residual = self._left_out(float(self.unit * GRID[at]), self.y, keep=True)[2]
                    losses[at] = float(residual.square().mean())
            best = min(near, key=losses.__getitem__)
            if best == place:
                return place
            place = best
        return None

    def _left_out(self, penalty: float, y: Tensor, *, keep: bool = False) -> tuple[Factor, Tensor, Tensor]:
        """Return the factor for a penalty, and for y [t, m] G y and what fits without each ablation leave of it."""
        factor, diagonal = self._kept.get(penalty, (None, None))
        dual = None if factor is None else factor.solve(y.T)
        if factor is None or diagonal is None or dual is None:
            factor, solved = self.solve(penalty, y)
            diagonal, dual = factor.inverse_diagonal(), solved.T
        if keep:
            self._kept[penalty] = factor, diagonal
        # The constant direction is penalised by unit instead of 0 in the factor; here it is taken out.
        constant = 1 / (len(self.design) * (penalty + self.unit))
        return factor, dual.T, dual.T / (diagonal - constant)

    def solve(self, penalty: float, y: Tensor) -> tuple[Factor, Tensor]:
        """Return the factor for a penalty, in single precision if that will do, and the solutions for y [t, m]."""
        for dtype in (torch.float32, torch.float64):
            matrix = None if self._single is None or dtype != torch.float32 else self._single.clone()
            factor = Factor.of(self.gram, penalty, self.unit, dtype, matrix)
            dual = None if factor is None else factor.solve(y.T)
            if factor is not None and dual is not None:
                return factor, dual.T
            del factor
        raise ValueError(f"ridge: K + {penalty:.3g} cannot be solved with, its condition is too bad")

    def generalised_losses(self, steps: int, n_probes: int) -> Tensor:
        """Return m ||G y||^2 / trace(G)^2 per target and penalty, [t, p]: leave-one-out with the mean of G_ii for each.

        It is from the same paper. Quadratic forms of G are those of the small matrices that some Lanczos steps leave.
        """
        m, t = len(self.design), len(self.y)
        generator = torch.Generator().manual_seed(0)
        probes = 2.0 * torch.randint(2, (m, n_probes), generator=generator) - 1
        start = torch.cat([self.y.T, probes - probes.mean(0)], 1).double()
        # The starts have no part along the constant, so that what the matrix does to it makes no difference.
        matrix = self.gram.filled(torch.float32) if self._single is None else self._single
        values, weights = lanczos(matrix, start, steps)
        shifted = values[:, :, None] + self.unit * GRID
        forms = (weights[:t, :, None] / shifted[:t].square()).sum(1)
        trace = (weights[t:, :, None] / shifted[t:]).sum(1).mean(0)
        return m * forms / trace.square()


def lanczos(matrix: Tensor, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return nodes and weights [c, k], float64. start_c^T f(matrix) start_c is the sum of weights * f(nodes).

    Golub & Meurant (1994), for each column of ``start`` [m, c]; exact for polynomials f up to degree 2 k - 1.
    """
    norms = start.norm(dim=0)
    tiny = 1e-12 * norms.clamp(min=1e-300)
    before, current = torch.zeros_like(start), start / norms.clamp(min=1e-300)
    diagonal: list[Tensor] = []
    below: list[Tensor] = []
    for _ in range(min(steps, len(matrix))):
        product = (matrix @ current.to(matrix.dtype)).double() - (below[-1] * before if below else 0)
        diagonal.append((product * current).sum(0))
        product -= diagonal[-1] * current
        below.append(product.norm(dim=0))
        # A column whose space is exhausted goes on as zeros, which add nodes without weight.
        scale = torch.where(below[-1] > tiny, below[-1], torch.inf)
        below[-1] = torch.where(below[-1] > tiny, below[-1], 0.0)
        before, current = current, product / scale
    small = torch.diag_embed(torch.stack(diagonal, 1))
    off = torch.diag_embed(torch.stack(below[:-1], 1), 1) if len(below) > 1 else 0
    values, vectors = np.linalg.eigh((small + off + (off.mT if isinstance(off, Tensor) else 0)).numpy())
    weights = norms[:, None].square() * torch.from_numpy(vectors)[:, 0].square()
    return torch.from_numpy(values).clamp(min=0), weights


class Factor:
    """The Cholesky factor of K + penalty + unit / m, in the precision given."""

    def __init__(self, gram: CentredGram, penalty: float, lower: Tensor) -> None:
        self.gram, self.penalty, self.lower = gram, penalty, lower

    @classmethod
    def of(
        cls, gram: CentredGram, penalty: float, unit: float, dtype: torch.dtype, matrix: Tensor | None = None
    ) -> Factor | None:
        """Factor the matrix. None where rounding makes it indefinite. ``matrix``, K + unit / m, is overwritten."""
        if matrix is None:
            matrix = gram.filled(dtype, penalty, unit)
        else:
            matrix.diagonal().add_(penalty)
        lower, failed = torch.linalg.cholesky_ex(matrix)
        return None if bool(failed) else cls(gram, penalty, lower)

    def solve(self, y: Tensor) -> Tensor | None:
        """Return (K + penalty)^-1 y, float64 [m, t], refined to double precision. None where it does not get there."""
        x = torch.zeros_like(y)
        remainder, size = y, y.norm(dim=0).clamp(min=1e-300)
        for _ in range(30):
            scale = remainder.norm(dim=0).clamp(min=1e-300)  # keeps tiny remainders within single precision's range
            x = x + scale * self.inverse_times(remainder / scale).double()
            x = x - x.mean(0)  # rounding only: the factor penalises the constant direction by another amount
            remainder = y - self.gram.times(x) - self.penalty * x
            if bool((remainder.norm(dim=0) <= TOLERANCE * size).all()):
                return x
        return None

    def inverse_times(self, x: Tensor) -> Tensor:
        """Return the inverse times x [m, c], in the factor's precision."""
        return torch.cholesky_solve(x.to(self.lower.dtype), self.lower)

    def inverse_diagonal(self) -> Tensor:
        """Return the diagonal of the inverse, float64 [m]: squared norms of the columns of the factor's inverse."""
        m = len(self.lower)
        diagonal = torch.empty(m, dtype=torch.float64)
        for start in range(0, m, _INVERSE_BLOCK):
            part = self.lower[start:, start:]
            unit_vectors = torch.eye(m - start, min(_INVERSE_BLOCK, m - start), dtype=part.dtype)
            columns = torch.linalg.solve_triangular(part, unit_vectors, upper=False)
            diagonal[start : start + _INVERSE_BLOCK] = columns.norm(dim=0).double().square()
        return diagonal
