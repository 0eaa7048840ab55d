"""Estimators side by side: every one is measured on the same ablations, with what it cost."""

from __future__ import annotations

import pytest

from cad_fast import Ablation, ComponentSpace, ConceptErasure
from cad_fast.attribution import Attributor
from cad_fast.attribution.compare import compare_estimators
from cad_fast.attribution.held_out import HOLDOUT_SEED
from cad_fast.attribution.trust import Trust, predicted_change

SETTINGS = {"fraction": 0.2, "holdout": 24, "partitions": (1, 2), "ablations": (10,), "progress": False}
MODULES = {"weight": "cross-attention-kv", "head": None}


@pytest.mark.parametrize("kind", MODULES)
def test_points(pipeline, recording, kind) -> None:
    space = ComponentSpace.of(pipeline, kind, MODULES[kind])
    points = compare_estimators(pipeline, recording, components=space, **SETTINGS)
    rows = recording.n_rows * recording.n_steps
    found = {}
    for point in points:
        low, high = point["interval"]
        assert -1 <= low <= point["r"] <= high <= 1 and point["seconds"] > 0
        found.setdefault(point["method"], []).append(point["row_evaluations"])
    second = found.pop("second order", None)
    assert found == {
        "gradient": [2 * rows],
        "ablated gradient": [10 * rows, 20 * rows],
        "ablated gradient, trapezoid": [10 * rows],
        "ridge": [10 * rows],
        "ridge on the residual of the ablated gradient": [20 * rows],
    }
    assert second is None if kind == "head" else 0.5 * 10 * rows < second[0] <= 12 * rows
    held = [Ablation.random(space.n, 0.2, HOLDOUT_SEED + number) for number in range(24)]
    for name, method in (("gradient", "gradient"), ("second order", "second_order")):
        if name in {point["method"] for point in points}:
            options = {} if method == "gradient" else {"fraction": 0.2, "networks": 3}
            attributor = Attributor(pipeline, None, space, method=method, **options)
            scores = attributor.run(recording, progress=False)
            j = attributor.measured(recording, held, progress=False)
            expected = Trust.of(predicted_change(scores.values, held, scores.curvature), j, 0.2).pearson
            (point,) = (point for point in points if point["method"] == name)
            assert point["r"] == pytest.approx(expected, abs=1e-6)


def test_both_branches_leave_the_second_order_out(pipeline, recording) -> None:
    space = ComponentSpace.of(pipeline, "weight", "cross-attention-kv")
    points = compare_estimators(pipeline, recording, ConceptErasure(both_branches=True), space, **SETTINGS)
    assert "second order" not in {point["method"] for point in points}
