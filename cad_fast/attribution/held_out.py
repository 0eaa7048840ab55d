"""Ablations that no estimate has seen, for one concept or many: how far to trust scores, when to stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..components.ablation import Ablation
from ..components.space import ComponentSpace
from .measuring.measure import measure_all
from .measuring.measurer import Measurer
from .measuring.plans import ROWS_PER_PASS, Target
from .methods.base import Estimator, Method
from .scores import Scores
from .stop import StopWhen, Watch
from .trust import Trust, correlation, predicted_change

# Seeds of their own: held-out ablations are neither those of an estimate nor those that a run stops by.
HOLDOUT_SEED = 1 << 40
STOPPING_SEED = 1 << 41


def require_holdout(ablations: int, method: Method) -> None:
    """Raise ValueError for a holdout of scores that predict nothing."""
    if ablations and method == "sensitivity":
        raise ValueError("holdout: a sensitivity predicts no change of J, there is nothing to hold out")


def require_stop(stop: StopWhen | None, method: Method) -> None:
    """Raise ValueError for a method that has no place to stop, or not by what was asked for."""
    if stop is None:
        return
    if method not in ("ablated_gradient", "regression"):
        raise ValueError(f"stop_when: method {method!r} cannot stop early; ablated_gradient and regression can")
    if stop.interval_width is not None and method == "regression":
        raise ValueError("stop_when: interval_width goes with ablated_gradient; a regression may stop by r")


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
    **measuring: Any,
) -> list[list[Trust]]:
    """Measure how well scores predict J under ablations that they have not seen. The targets share the passes.

    Args:
        denoiser: The module that the scores are of.
        targets: What to measure, per concept.
        space: The components.
        scores: One per target.
        ablations: How many ablations of each fraction, at least 8.
        fractions: The shares of the components that are removed.
        seed: Draws other ablations.
        rows_per_pass: How many rows go through the denoiser at once, at most.
        **measuring: progress, executor and workers, as for ``measure_all``.

    Returns:
        Per target, one ``Trust`` per fraction.

    Raises:
        ValueError: J or the predictions do not vary. The message names the concept.
    """
    measurer = Measurer(denoiser, list(targets.values()), space, rows_per_pass)
    checks: list[list[Trust]] = [[] for _ in targets]
    for fraction in fractions:
        first = HOLDOUT_SEED + seed * ablations
        drawn = [Ablation.random(space.n, fraction, first + number) for number in range(ablations)]
        measured = measure_all(measurer, drawn, **measuring)
        for trusts, concept, one, j in zip(checks, targets, scores, measured, strict=True):
            try:
                trusts.append(Trust.of(predicted_change(one.values, drawn, one.curvature), j, fraction))
            except ValueError as error:
                raise ValueError(f"the scores of {concept!r} cannot be checked at {fraction:.0%}: {error}") from error
    return checks


def watch_for(
    stop: StopWhen | None,
    estimator: Estimator,
    denoiser: nn.Module,
    targets: Sequence[Target],
    space: ComponentSpace,
    *,
    rows_per_pass: int = ROWS_PER_PASS,
    **measuring: Any,
) -> Watch:
    """Make the watch that ends a run. To stop by r, measure J under ablations that are kept for this.

    Args:
        stop: When to stop. None makes a watch that never ends a run.
        estimator: The method, one that ``require_stop`` lets pass.
        denoiser: The module that the estimate is of.
        targets: What is measured, one per concept.
        space: The components.
        rows_per_pass: How many rows go through the denoiser at once, at most.
        **measuring: progress, executor and workers, as for ``measure_all``.
    """
    if stop is None or stop.r is None:
        return Watch(stop)
    fraction = estimator.config()["fraction"]
    drawn = [Ablation.random(space.n, fraction, STOPPING_SEED + number) for number in range(stop.ablations)]
    measured = measure_all(Measurer(denoiser, targets, space, rows_per_pass), drawn, **measuring)

    def r_of(values: Tensor) -> list[float]:
        predicted = torch.stack([predicted_change(one, drawn) for one in values])
        return [float(r) for r in correlation(predicted, measured)]

    return Watch(stop, r_of)
