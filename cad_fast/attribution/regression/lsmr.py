"""Ridge regression without any matrix of the size of the ablations squared: LSMR on products with the bits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...extras import require
from .design import Design
from .ridge import GRID

HELD_OUT = 10  # one of so many ablations chooses the penalty
MOST_STEPS = 200
CHECK_EVERY = 5


@dataclass(frozen=True)
class LsmrFit:
    """A fit by LSMR.

    Args:
        alpha: float64 [n].
        penalty: Lambda.
        steps: How many times each of X and X^T was multiplied by.
    """

    alpha: Tensor
    penalty: float
    steps: int


def lsmr(design: Design, y: Tensor) -> LsmrFit:
    """Fit one target: alpha minimises ||X alpha - y||^2 + penalty ||alpha||^2.

    The penalty is the one of the grid that predicts a tenth of the ablations best from the others; alpha is of all.
    LSMR is Fong & Saunders (2011), in scipy's version (extra ``lsmr``).

    Args:
        design: m ablations.
        y: float64 [m], centred.

    Raises:
        ImportError: scipy is not installed. The message names the extra.
    """
    sparse = require("scipy.sparse.linalg", "lsmr")
    m, n = len(design), design.n
    mean = design.ablated_mean
    unit = (design.factor - 1) ** 2 * float((mean * (1 - mean)).sum()) or 1.0
    penalty, steps = best_held_out(design, y, unit * GRID)
    operator = sparse.LinearOperator(
        (m, n),
        matvec=lambda v: design.times(torch.from_numpy(v).flatten()).numpy(),
        rmatvec=lambda u: design.transposed_times(torch.from_numpy(u).flatten()).numpy(),
        dtype="float64",
    )
    alpha, _, iterations, *_ = sparse.lsmr(
        operator, y.numpy(), damp=math.sqrt(penalty), atol=1e-8, btol=1e-8, conlim=0, maxiter=MOST_STEPS
    )
    return LsmrFit(torch.from_numpy(alpha), penalty, steps + iterations)


def best_held_out(design: Design, y: Tensor, penalties: Tensor) -> tuple[float, int]:
    """Return the penalty with the least held-out error, and the steps taken.

    One Golub-Kahan bidiagonalisation X V = U B of the other ablations serves all penalties: with any of them the
    coefficients are V z, z being the solution of the small problem with B, and the predictions (X V) z.
    """
    m = len(design)
    order = torch.randperm(m, generator=torch.Generator().manual_seed(0))
    kept = torch.ones(m, dtype=torch.float64)
    kept[order[: max(1, m // HELD_OUT)]] = 0
    held = kept == 0
    level = (y * kept).sum() / kept.sum()
    u = kept * (y - level)
    first = float(u.norm())
    if first == 0:
        return float(penalties[-1]), 0
    u = u / first
    v = design.transposed_times(u)
    diagonal, below, predictions = [float(v.norm())], [], []
    v = v / max(diagonal[0], 1e-300)
    before = math.inf
    for step in range(1, MOST_STEPS + 1):
        product = design.times(v)
        predictions.append(product[held])
        u = kept * product - diagonal[-1] * u
        below.append(float(u.norm()))
        u = u / max(below[-1], 1e-300)
        done = step == MOST_STEPS or below[-1] <= 1e-10 * diagonal[0]
        if step % CHECK_EVERY == 0 or done:
            z = small_solutions(diagonal, below, first, penalties)
            errors = (y[held, None] - level - torch.stack(predictions, 1) @ z).square().mean(0)
            if done or abs(before - float(errors.min())) <= 1e-4 * float(errors.min()):
                return float(penalties[errors.argmin()]), step
            before = float(errors.min())
        w = design.transposed_times(u) - below[-1] * v
        diagonal.append(float(w.norm()))
        v = w / max(diagonal[-1], 1e-300)
    raise AssertionError("the last step returns")


def small_solutions(diagonal: list[float], below: list[float], first: float, penalties: Tensor) -> Tensor:
    """Return the z [k, p], float64, of least ||B z - first e_1||^2 + penalty ||z||^2.

    B [k + 1, k] is lower bidiagonal.
    """
    k = len(below)
    b = torch.zeros(k + 1, k, dtype=torch.float64)
    b[:k].diagonal().copy_(torch.tensor(diagonal[:k], dtype=torch.float64))
    b[1:].diagonal().copy_(torch.tensor(below, dtype=torch.float64))
    u, s, vh = torch.linalg.svd(b, full_matrices=False)
    return vh.T @ (first * u[0, :, None] * s[:, None] / (s[:, None].square() + penalties))
