"""Gradients at ablated networks against one copy of the denoiser per ablation; stopped and resumed."""

from __future__ import annotations

import pytest
import torch

from cad_fast import Ablation, ConceptErasure
from cad_fast.attribution import Attributor, Scores
from cad_fast.attribution.methods.ablated_gradient import ablated_gradient_scores
from cad_fast.attribution.store import STATE_NAME
from tests.attribution.common import KINDS, assert_close, interrupt, space_of
from tests.row_truth import slow_gradient


@pytest.mark.parametrize("rows_per_pass", [2, 13, 60])
@pytest.mark.parametrize("kind", KINDS)
def test_ablated_gradient_is_the_trapezoid_rule(pipeline, recording, kind: str, rows_per_pass: int) -> None:
    space = space_of(pipeline, kind)
    parts = 4
    found, partitions = ablated_gradient_scores(
        pipeline.unet,
        recording,
        ConceptErasure(),
        space,
        fraction=1 / parts,
        ablated_weight=0.5,
        seed=5,
        rows_per_pass=rows_per_pass,
        progress=False,
    )
    kept, ablated = torch.zeros(2, space.n)
    for ablation in Ablation.balanced_partition(space.n, parts, seed=5):
        gradient = slow_gradient(pipeline.unet, recording, space, ablation)
        kept += torch.where(ablation.mask, 0, gradient) / (parts - 1)
        ablated += torch.where(ablation.mask, gradient, 0)
    assert partitions == 1 and found.ablated_weight == 0.5
    assert_close(found.values, (kept + ablated) / 2)


def test_a_stopped_run_goes_on_where_it_was(pipeline, recording, tmp_path, monkeypatch) -> None:
    import cad_fast.attribution.methods.ablated_gradient as ablated

    attributor = Attributor(pipeline, kind="neuron", method="ablated_gradient", fraction=0.25)
    expected = attributor.run(recording, rows_per_pass=4, progress=False)
    passes = interrupt(monkeypatch, ablated, "gather", 6)
    with pytest.raises(KeyboardInterrupt, match="resume=True"):
        attributor.run(recording, rows_per_pass=4, output_dir=tmp_path, progress=False)
    assert (tmp_path / STATE_NAME).exists()
    scores = attributor.run(recording, rows_per_pass=4, output_dir=tmp_path, resume=True, progress=False)
    total = scores.provenance["cost"]["forward_passes"]
    assert len(passes) == total + 1  # the stopped pass is done again, and no other
    assert torch.equal(scores.values, expected.values)
    assert torch.equal(Scores.load(tmp_path).values, expected.values)


def test_one_group_has_no_error_and_the_trapezoid_rule(pipeline, recording) -> None:
    attributor = Attributor(pipeline, kind="head", method="ablated_gradient", fraction=0.5)
    scores = attributor.run(recording, rows_per_pass=100, progress=False)
    assert scores.standard_error is None and scores.provenance["estimate"] == {"partitions": 1, "ablated_weight": 0.5}


PARTS = {"fraction": 0.25}


def attributor_of(pipeline, method: str, **options) -> Attributor:
    return Attributor(pipeline, kind="head", method=method, **PARTS, **options)


def test_a_stopped_run_with_errors_resumes(pipeline, recording, tmp_path, monkeypatch) -> None:
    import cad_fast.attribution.methods.ablated_gradient as ablated

    attributor = attributor_of(pipeline, "ablated_gradient", partitions=3)
    expected = attributor.run(recording, rows_per_pass=4, progress=False)
    with monkeypatch.context() as patch:
        interrupt(patch, ablated, "gather", 14)  # in the second partition, between the passes of one group
        with pytest.raises(KeyboardInterrupt):
            attributor.run(recording, rows_per_pass=4, output_dir=tmp_path, progress=False)
    scores = attributor.run(recording, rows_per_pass=4, output_dir=tmp_path, resume=True, progress=False)
    assert torch.equal(scores.values, expected.values) and torch.equal(scores.standard_error, expected.standard_error)
