"""Ablations that no estimate has seen, for one concept or many: how far to trust scores, when to stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..ablation import Ablation
from ..choices import Method
from ..components import ComponentSpace
from .measure import Measurer, Target, measure_all
from .methods import Estimator
from .scores import Scores
from .stop import StopWhen, Watch
from .trust import FEWEST, Trust, correlation, predicted_change

# Seeds of their own: held-out ablations are neither those of an estimate nor those that a run stops by.
HOLDOUT_SEED = 1 << 40
STOPPING_SEED = 1 << 41
HOLDOUT_FRACTIONS = (0.01, 0.05, 0.2)
ROWS_PER_PASS = 64


def require_holdout(ablations: int, method: Method) -> None:
    """Raises ValueError, before anything is measured, for a holdout that says nothing or is too small."""
    if ablations and method == "sensitivity":
        raise ValueError("holdout: a sensitivity predicts no change of J, there is nothing to hold out")
    if ablations and ablations < FEWEST:
        raise ValueError(f"holdout is {ablations}, expected at least {FEWEST} ablations, or 0 for none")


def held_out(
    denoiser: nn.Module,
    targets: Mapping[str, Target],
    space: ComponentSpace,
    scores: Sequence[Scores],
    ablations: int,
    fractions: Sequence[float],
    *,
    seed: int = 0,
    rows_per_pass: int = ROWS_PER_PASS,
    **how: Any,
) -> list[list[Trust]]:
    """Per target and fraction, how well its scores predict J under so many fresh ablations.

    The targets share the passes. ``how``: progress, executor and workers as for ``measure_all``.
    Raises ValueError naming the concept whose J, or whose predictions, do not vary.
    """
    measurer = Measurer(denoiser, list(targets.values()), space, rows_per_pass)
    found: list[list[Trust]] = [[] for _ in targets]
    for fraction in fractions:
        first = HOLDOUT_SEED + seed * ablations
        drawn = [Ablation.random(space.n, fraction, first + number) for number in range(ablations)]
        measured = measure_all(measurer, drawn, **how)
        for checks, name, own, j in zip(found, targets, scores, measured, strict=True):
            try:
                checks.append(Trust.of(predicted_change(own.values, drawn, own.curvature), j, fraction))
            except ValueError as error:
                raise ValueError(f"the scores of {name!r} cannot be checked at {fraction:.0%}: {error}") from error
    return found


def watch_for(
    stop: StopWhen | None,
    estimator: Estimator,
    denoiser: nn.Module,
    targets: Sequence[Target],
    space: ComponentSpace,
    **how: Any,
) -> Watch:
    """A watch over estimates of all targets, with J under the ablations that they are to stop by, if by r.

    ``how`` as for ``held_out``. Raises ValueError for a method that has no place to stop.
    """
    if stop is None:
        return Watch()
    if estimator.name not in ("ablated_gradient", "regression"):
        raise ValueError(f"stop_when: method {estimator.name!r} cannot stop early; ablated_gradient and regression can")
    if stop.interval_width is not None and estimator.name == "regression":
        raise ValueError("stop_when: interval_width goes with ablated_gradient; a regression may stop by r")
    if stop.r is None:
        return Watch(stop)
    fraction = estimator.config()["fraction"]
    drawn = [Ablation.random(space.n, fraction, STOPPING_SEED + number) for number in range(stop.ablations)]
    measured = measure_all(Measurer(denoiser, targets, space, ROWS_PER_PASS), drawn, **how)

    def r_of(values: Tensor) -> list[float]:
        predicted = torch.stack([predicted_change(one, drawn) for one in values])
        return [float(r) for r in correlation(predicted, measured)]

    return Watch(stop, r_of)
