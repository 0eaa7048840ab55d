"""Curvature: the algebra of its directions against dense matrices, and its formula."""

from __future__ import annotations

from dataclasses import replace

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
    directions *= torch.logspace(-3, 3, 30)  # some components matter a million times as much as others
    weights[2] *= 1e-10
    curvature = Curvature.of(directions, weights, 0.2, torch.arange(30), 30)
    assert curvature.directions.dtype == torch.int8
    ablation = Ablation.from_indices(30, [2, 7, 29], [0.0, 0.5, 2.0])
    assert curvature.change(ablation) == pytest.approx(by_hand(directions, weights, ablation), rel=2e-2)
    few = Ablation.from_indices(30, [2, 7])  # of these alone, the offsets are most of it
    assert curvature.change(few) == pytest.approx(by_hand(directions, weights, few), rel=2e-2)
    assert curvature.change(Ablation.from_indices(30, [])) == 0
    values = torch.randn(30)
    both = predicted_change(values, [ablation], curvature) - predicted_change(values, [ablation])
    assert both.tolist() == pytest.approx([curvature.change(ablation)])
    with pytest.raises(ValueError, match=r"offsets has shape \[3\], expected \[4\]"):
        replace(curvature, offsets=torch.zeros(3))
    with pytest.raises(ValueError, match="weights has values that are NaN"):
        replace(curvature, weights=weights * torch.nan)


def by_hand(directions: torch.Tensor, weights: torch.Tensor, ablation: Ablation) -> float:
    """The formula, in float64, at fraction 0.2."""
    lost = (1 - ablation.gates).double()
    offsets = 0.2 * directions.double().sum(1)
    return float(weights.double() @ ((directions.double() @ lost - offsets).square() - offsets.square()))


def test_directions_of_some_components_are_those_of_all_with_zeros() -> None:
    columns, weights = torch.tensor([1, 4, 5, 11]), torch.randn(3)
    directions = torch.randn(3, 4)
    curvature = Curvature.of(directions, weights, 0.2, columns, 12)
    whole = torch.zeros(3, 12)
    whole[:, columns] = directions
    assert curvature.n == 12 and curvature.nbytes == 3 * 4 + 4 * 8 + 3 * 8 + 8
    for indices in ([0, 1, 2, 11], [0, 2], [4, 5], list(range(12))):
        ablation = Ablation.from_indices(12, indices, 0.25)
        assert curvature.change(ablation) == pytest.approx(by_hand(whole, weights, ablation), rel=2e-2, abs=1e-3)
    part = curvature.of_components(torch.tensor([0, 4, 6, 11]))
    assert part.n == 4 and part.columns.tolist() == [1, 3]
    within, same = Ablation.from_indices(4, [1, 2, 3]), Ablation.from_indices(12, [4, 6, 11])
    assert part.change(within) == pytest.approx(curvature.change(same), rel=1e-9)
    none = curvature.of_components(torch.tensor([0, 2]))
    assert none.change(Ablation.from_indices(2, [0, 1])) == 0 + none.change(Ablation.from_indices(2, []))
    with pytest.raises(ValueError, match="columns and components go together"):
        replace(curvature, components=None)
    for bad in ([4, 1, 5, 11], [1, 4, 5, 12], [1, 1, 5, 11]):
        with pytest.raises(ValueError, match="not ascending numbers of the 12 components"):
            replace(curvature, columns=torch.tensor(bad, dtype=torch.int32))


def test_a_curvature_without_columns_is_of_all_components() -> None:
    """As earlier versions saved it."""
    directions, weights = torch.randn(3, 12).half(), torch.randn(3)
    curvature = Curvature(directions, 0.2 * directions.float().sum(1), weights)
    ablation = Ablation.from_indices(12, [3, 7])
    assert curvature.change(ablation) == pytest.approx(by_hand(directions, weights, ablation), rel=1e-3)
    part = curvature.of_components(torch.tensor([3, 7]))
    assert part.change(Ablation.from_indices(2, [0, 1])) == pytest.approx(curvature.change(ablation), rel=1e-9)
