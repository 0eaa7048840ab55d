"""J under ablations whose passes share their beginning."""

import pytest
import torch

from cad_fast import Ablation, ComponentSpace, ConceptErasure
from cad_fast.attribution.measuring.measure import measure_all
from cad_fast.attribution.measuring.measurer import Measurer
from cad_fast.attribution.measuring.plans import SHARING_VARIANTS, MeasuringPlan, Target
from tests.attribution.common import slow_j


@pytest.mark.parametrize("both", [False, True], ids=["conditional", "both branches"])
def test_measured_j(pipeline, recording, both) -> None:
    target = Target(ConceptErasure(both_branches=both), recording)
    space = ComponentSpace.of(pipeline, "head", "attention")
    ablations = [Ablation.from_indices(space.n, [i]) for i in range(space.n)]
    measurer = Measurer(pipeline.unet, [target], space, 2 * SHARING_VARIANTS, share=True)
    assert measurer.plan.variants == SHARING_VARIANTS
    j = measure_all(measurer, ablations, progress=False)[0]
    plain = measure_all(Measurer(pipeline.unet, [target], space, 12), ablations, progress=False)[0]
    torch.testing.assert_close(j, plain, rtol=1e-5, atol=1e-7)
    if not both:
        some = slice(None, None, max(1, space.n // 3))
        slow = [slow_j(pipeline.unet, target, space, each) for each in ablations[some]]
        torch.testing.assert_close(j[some], torch.tensor(slow).double(), rtol=1e-4, atol=1e-7)


def test_plans_of_shared_passes(recording) -> None:
    target = Target(ConceptErasure(), recording)
    for rows_per_pass in (1, 5, 16, 40, 64):
        plan, plain = (MeasuringPlan.of([target], rows_per_pass, share=share) for share in (True, False))
        assert plan.rows == plain.rows and plan.n_rows == plain.n_rows
        largest = max(sum(len(rows) for _, _, rows in pieces) for pieces in plan.passes)
        assert largest * plan.variants <= rows_per_pass
        assert plan.variants >= min(SHARING_VARIANTS, rows_per_pass)
