"""The estimators side by side: correlation with measured J against what each costs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..choices import Method
from ..components.ablation import Ablation
from ..components.space import ComponentSpace
from ..objectives import ConceptErasure, Objective, fitted
from ..recording.data import Recording
from .attributor import Attributor
from .held_out import HOLDOUT_SEED
from .methods.second_order import FEWEST_NETWORKS
from .regression.design import Design
from .regression.draws import parts_of
from .regression.solvers import fit
from .scores import Scores
from .trust import Trust, predicted_change

# The fits' ablations come from seeds that no other draw uses.
FITTED_SEED = 1 << 43


def compare_estimators(
    pipeline: Any,
    recording: Recording,
    objective: Objective | None = None,
    components: ComponentSpace | None = None,
    *,
    fraction: float = 0.05,
    holdout: int = 120,
    partitions: Sequence[int] = (1, 2),
    ablations: Sequence[int] = (100, 200),
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Run every estimator on one recording, and measure how well each predicts J.

    These are compared:

    - the gradient;
    - the ablated gradient with each of ``partitions``, and with one by the trapezoid rule;
    - the second order, of about as many rows as one partition, for single weights and objectives of one branch;
    - ridge on the first so many of one set of ``ablations``, alone and on the residual of the ablated gradient of one
      partition.

    Args:
        pipeline: As for ``Attributor``.
        recording: As for ``Attributor.run``.
        objective: As for ``Attributor``.
        components: As for ``Attributor``.
        fraction: The share of the components that an ablation removes.
        holdout: How many random ablations r is measured over, the same for all estimators.
        partitions: Budgets of the ablated gradient.
        ablations: Budgets of ridge.
        progress: Whether to show progress bars.

    Returns:
        One point per estimator and budget, as ``report.cost_plot`` takes them: "method"; "row_evaluations", the rows
        through the denoiser, those backward counted again; "seconds"; "r" and its "interval"; and what the method knows
        of itself.

    Raises:
        ValueError: As ``Attributor``.
    """
    objective, recording = fitted(objective or ConceptErasure(), recording, pipeline)
    plain = Attributor(pipeline, objective, components)
    space = plain.space
    held = [Ablation.random(space.n, fraction, HOLDOUT_SEED + number) for number in range(holdout)]
    held_j = plain.measured(recording, held, progress=progress)
    points = []

    def add(method: str, change: Tensor, evaluations: int, seconds: float, facts: Mapping[str, Any]) -> None:
        trust = Trust.of(change, held_j, fraction)
        cost = {"row_evaluations": evaluations, "seconds": seconds}
        points.append({**facts, "method": method, **cost, "r": trust.pearson, "interval": list(trust.pearson_interval)})

    def run(name: str, method: Method, **options: Any) -> Scores:
        attributor = Attributor(pipeline, objective, space, method=method, **options)
        scores = attributor.run(recording, progress=progress)
        cost, facts = scores.provenance["cost"], scores.provenance["estimate"]
        times = facts.get("partitions", 0) * parts_of(fraction, space.n) or 1
        through = facts.get("rows", rows * times)
        change = predicted_change(scores.values, held, scores.curvature)
        add(name, change, 2 * through, cost["seconds"], {**facts, "passes": cost["backward_passes"]})
        return scores

    rows = sum(call.rows for call in recording.calls if plain.objective.active(call))
    run("gradient", "gradient")
    prior = run("ablated gradient", "ablated_gradient", fraction=fraction)
    before = points[-1]
    run("ablated gradient, trapezoid", "ablated_gradient", fraction=fraction, ablated_weight=0.5)
    if space.kind == "weight" and not plain.objective.both_branches:
        # Before, every row is run at the fewest networks, to see where J bends.
        networks = max(FEWEST_NETWORKS, parts_of(fraction, space.n) - FEWEST_NETWORKS)
        run("second order", "second_order", fraction=fraction, networks=networks)
    for number in partitions:
        if number > 1:
            run("ablated gradient", "ablated_gradient", fraction=fraction, partitions=number)
    drawn: list[Ablation] = []
    while len(drawn) < max(ablations):
        drawn += Ablation.balanced_partition(space.n, parts_of(fraction, space.n), FITTED_SEED + len(drawn))
    started = time.perf_counter()
    j = plain.measured(recording, drawn[: max(ablations)], progress=progress)
    each = (time.perf_counter() - started) / max(ablations)
    for m in ablations:
        design = Design.of(drawn[:m])
        for name, values in (("ridge", None), ("ridge on the residual of the ablated gradient", prior.values)):
            started = time.perf_counter()
            alpha = fit(design, j[:m], "ridge", prior=values).alpha
            extra = (0, 0.0) if values is None else (before["row_evaluations"], before["seconds"])
            seconds = time.perf_counter() - started + m * each + extra[1]
            change = predicted_change(alpha.float(), held)
            add(name, change, m * rows + extra[0], seconds, {"ablations": m})
    return points
