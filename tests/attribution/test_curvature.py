"""Curvature: the algebra of its directions against dense matrices, and its formula."""

from __future__ import annotations

import pytest
import torch

from cad_fast import Ablation
from cad_fast.attribution.curvature import Curvature, strongest
from cad_fast.attribution.trust import predicted_change
from tests.attribution.common import assert_close


@pytest.mark.parametrize("keep", [1, 4, 50])
def test_strongest_is_the_dense_form_cut_off(keep: int) -> None:
    directions = torch.randn(12, 20)
    directions = torch.cat([directions, directions[:5] * 2])  # not independent
    weights = torch.randn(17)
    dense = (directions.T * weights) @ directions
    values, vectors = torch.linalg.eigh(dense.double())
    order = values.abs().argsort(descending=True)[:keep]
    found, sizes = strongest(directions, weights, keep)
    assert len(found) == len(sizes) == min(keep, 12)
    assert_close((found.T * sizes) @ found, (vectors[:, order] * values[order]) @ vectors[:, order].T)
    assert_close(found @ found.T, torch.eye(len(found)))
    assert strongest(torch.zeros(3, 20), torch.ones(3), 2)[0].shape == (0, 20)


def test_a_curvature_changes_j_as_its_formula_says() -> None:
    directions, weights = torch.randn(4, 30) * torch.tensor([[1e-6], [1.0], [3e5], [1.0]]), torch.randn(4)
    weights[2] *= 1e-10
    curvature = Curvature.of(directions, weights, 0.2)
    assert curvature.directions.dtype == torch.float16
    ablation = Ablation.from_indices(30, [2, 7, 29], [0.0, 0.5, 2.0])
    lost = (1 - ablation.gates).double()
    offsets = 0.2 * directions.double().sum(1)
    expected = weights.double() @ ((directions.double() @ lost - offsets).square() - offsets.square())
    assert curvature.change(ablation) == pytest.approx(float(expected), rel=2e-2)
    assert curvature.change(Ablation.from_indices(30, [])) == 0
    values = torch.randn(30)
    both = predicted_change(values, [ablation], curvature) - predicted_change(values, [ablation])
    assert both.tolist() == pytest.approx([curvature.change(ablation)])
    with pytest.raises(ValueError, match=r"offsets has shape \[3\], expected \[4\]"):
        Curvature(curvature.directions, torch.zeros(3), weights)
    with pytest.raises(ValueError, match="weights has values that are NaN"):
        Curvature(curvature.directions, curvature.offsets, weights * torch.nan)
