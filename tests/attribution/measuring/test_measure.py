"""J under ablations, for one concept and for many, against one copy of the denoiser per ablation."""

from __future__ import annotations

import pytest
import torch

import cad_fast
from cad_fast import Ablation, ConceptErasure
from cad_fast.attribution.measuring.measure import measure_all, objective_under_ablations
from cad_fast.attribution.measuring.measurer import Measurer
from cad_fast.attribution.measuring.plans import Target
from tests.attribution.common import KINDS, assert_close, slow_j, space_of


@pytest.mark.parametrize("rows_per_pass", [1, 4, 30])
@pytest.mark.parametrize("kind", KINDS)
def test_j_is_that_of_ablated_copies(pipeline, recording, kind: str, rows_per_pass: int) -> None:
    space = space_of(pipeline, kind)
    ablations = [Ablation.random(space.n, 0.2, seed) for seed in range(4)] + [Ablation.from_indices(space.n, [])]
    found = objective_under_ablations(
        pipeline.unet, recording, ConceptErasure(), space, ablations, rows_per_pass=rows_per_pass, progress=False
    )
    target = Target(ConceptErasure(), recording)
    assert_close(found, torch.tensor([slow_j(pipeline.unet, target, space, ablation) for ablation in ablations]))


@pytest.mark.parametrize("rows_per_pass", [1, 5, 40])
@pytest.mark.parametrize("kind", ["head", "filter"])
def test_j_of_each_concept_is_that_of_ablated_copies(pipeline, concepts, kind: str, rows_per_pass: int) -> None:
    space = cad_fast.ComponentSpace.of(pipeline, kind)
    targets = [Target(*c) if isinstance(c, tuple) else Target(ConceptErasure(), c) for c in concepts.values()]
    ablations = [Ablation.random(space.n, 0.2, seed) for seed in range(3)]
    measurer = Measurer(pipeline.unet, targets, space, rows_per_pass)
    found = measure_all(measurer, ablations, progress=False)
    expected = torch.tensor([[slow_j(pipeline.unet, t, space, a) for a in ablations] for t in targets]).double()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("both", [False, True], ids=["recorded", "both-branches"])
def test_objectives_of_both_branches_share_passes_with_others(pipeline, recordings, both: bool) -> None:
    animals, _ = recordings
    space = cad_fast.ComponentSpace.of(pipeline, "head")
    ablations = [Ablation.random(space.n, 0.3, seed) for seed in range(4)]
    targets = [Target(ConceptErasure(both_branches=True), animals), Target(ConceptErasure(), animals)]
    together = measure_all(Measurer(pipeline.unet, targets, space, 12), ablations, progress=False)
    alone = measure_all(Measurer(pipeline.unet, [targets[not both]], space, 12), ablations, progress=False)
    torch.testing.assert_close(together[int(not both)], alone[0], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(together[0], together[1])


def test_until_sees_the_ablations_in_order_even_where_they_come_in_another(pipeline, recordings, monkeypatch) -> None:
    space = cad_fast.ComponentSpace.of(pipeline, "head")
    ablations = [Ablation.random(space.n, 0.3, seed) for seed in range(9)]
    measurer = Measurer(pipeline.unet, [Target(ConceptErasure(), recordings[1])], space, 6)
    expected = measure_all(measurer, ablations, progress=False)

    def backwards(measurer, ablations):
        def compute(groups):
            with measurer:
                for first, count in groups[::-1]:
                    yield first, measurer.measure(ablations[first : first + count])

        return compute

    monkeypatch.setattr("cad_fast.attribution.measuring.measure.locally", backwards)
    seen = []

    def until(j):
        seen.append(j.shape[1])
        return j.shape[1] >= 6

    assert torch.equal(measure_all(measurer, ablations, until=until, progress=False), expected[:, :6])
    assert seen == [2, 4, 6]
