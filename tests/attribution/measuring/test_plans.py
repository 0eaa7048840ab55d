"""Which rows share a pass: every row once."""

from __future__ import annotations

from cad_fast.attribution.measuring.passes import gather
from cad_fast.attribution.measuring.plans import MeasuringPlan, Target, plan_passes
from cad_fast.objectives import ConceptErasure


def test_every_row_of_every_active_call_is_in_one_pass(recording):
    window = (recording.timesteps[2], recording.timesteps[1])
    objective = ConceptErasure(timesteps=window)
    passes = plan_passes(recording, objective, 3)
    places = sorted((number, row) for pieces in passes for number, rows in pieces for row in rows)
    assert places == [(number, row) for number in (1, 2) for row in range(2)]
    assert all(gather(recording, pieces).rows <= 3 for pieces in passes)


def test_every_row_goes_through_once(concepts) -> None:
    targets = [Target(*c) if isinstance(c, tuple) else Target(ConceptErasure(), c) for c in concepts.values()]
    plan = MeasuringPlan.of(targets, 4)
    rows = [(number, call, row) for pieces in plan.passes for number, call, rows in pieces for row in rows]
    assert len(rows) == len(set(rows)) == 3 * (2 + 1 + 1)  # three recordings, whatever the number of concepts on them
    assert plan.n_rows == [6, 4, 6, 3, 3]
    assert MeasuringPlan.of(targets[:3], 6).cost(10) == MeasuringPlan.of(targets[:1], 6).cost(10)
