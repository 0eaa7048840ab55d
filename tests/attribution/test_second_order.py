"""Scores with curvature: rows' gradients against copies, the algebra against dense matrices, and what it predicts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import cad_fast
from cad_fast import Ablation, ComponentSpace, ConceptErasure
from cad_fast.attribution import Attributor, Scores
from cad_fast.attribution.curvature import Curvature, strongest
from cad_fast.attribution.gradients import bending as bending_module
from cad_fast.attribution.gradients.bending import bending
from cad_fast.attribution.gradients.per_row import row_gradients
from cad_fast.attribution.measuring.passes import merge_calls
from cad_fast.attribution.methods import second_order
from cad_fast.attribution.methods.second_order import NetworksPlan, second_order_scores
from cad_fast.attribution.trust import predicted_change
from tests.attribution.common import interrupt
from tests.row_truth import ablated_copy

OPTIONS = {"fraction": 0.25, "networks": 10, "directions": 40}


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-3) -> None:
    found, expected = found.double(), expected.double()
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance / 10 * float(expected.abs().max()))


@pytest.mark.parametrize("modules", ["feed-forward", "all"])
def test_gradients_of_rows_are_those_of_ablated_copies(pipeline, recording, modules: str) -> None:
    space = ComponentSpace.of(pipeline, "weight", modules)
    call = merge_calls(recording.calls).select_rows([3, 0, 0])
    ablations = [Ablation.random(space.n, 0.2, 1), Ablation.random(space.n, 0.6, 2), Ablation.from_indices(space.n, [])]
    flags = [(parameter, parameter.requires_grad) for parameter in pipeline.unet.parameters()]
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    found = row_gradients(pipeline.unet, ConceptErasure(), space, call, ablations)
    for parameter, flag in flags:
        parameter.requires_grad_(flag)
    intact = space.modules(pipeline.unet)
    for row, ablation in enumerate(ablations):
        own = call.select_rows([row])
        twin = ablated_copy(pipeline.unet, space, ablation)
        weights = [module.weight.requires_grad_(True) for module in space.modules(twin).values()]
        output = own.run(twin)
        j = ConceptErasure()(output, own)
        gradients = torch.autograd.grad(j.sum(), [output, *weights], allow_unused=True)
        parts = [
            torch.zeros(intact[entry.module].weight.numel())
            if g is None
            else (g * intact[entry.module].weight).flatten()
            for entry, g in zip(space, gradients[1:], strict=True)
        ]
        assert_close(found[0][row], torch.cat(parts).detach())
        assert_close(found[1][row], output.detach().flatten())
        assert_close(found[2][row], gradients[0].flatten())
        assert_close(found[3][row], j.detach()[0])


@pytest.mark.parametrize("networks", [4, 7, 30])
def test_bending_is_exact_where_the_output_moves_linearly(monkeypatch, networks: int) -> None:
    monkeypatch.setattr(bending_module, "RIDGE", 1e-7)
    n, elements = 60, 3  # three independent outputs are spanned by the differences of four networks
    moves, reference, start = torch.randn(n, elements), torch.randn(elements), torch.randn(elements)
    lost = (torch.rand(networks, n) < 0.3).float()
    outputs = start - lost @ moves
    cotangents = 2 * (outputs - reference)
    gradients = cotangents @ moves.T
    vectors, weights = bending(outputs, cotangents)
    ablation = (torch.rand(n) < 0.3).float() - 0.3
    along = (gradients - gradients.mean(0)) @ ablation
    assert_close((weights * (vectors.T @ along).square()).sum(), (ablation @ moves).square().sum(), 1e-2)
    if networks == 4:  # of two outputs' worth of networks, one direction stays unknown
        less, size = bending(outputs[:3], cotangents[:3])
        along = (gradients[:3] - gradients[:3].mean(0)) @ ablation
        assert (size * (less.T @ along).square()).sum() < (ablation @ moves).square().sum()


def test_nothing_bends_where_j_is_linear() -> None:
    vectors, weights = bending(torch.randn(5, 8), torch.randn(1, 8).expand(5, 8))
    assert vectors.shape == (5, 5) and torch.equal(weights, torch.zeros(5))


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


def test_the_plan_gives_rows_of_large_j_more_networks(recording) -> None:
    plan = NetworksPlan.of(recording, ConceptErasure(), 20, 7)
    assert [pair for pairs in plan.passes for pair in pairs] == [
        (place, network) for place, count in enumerate(plan.networks) for network in range(count)
    ]
    assert max(map(len, plan.passes)) == 7 and 0.9 * 20 * len(plan.places) < plan.rows <= 20 * len(plan.places)
    j = [float(ConceptErasure()(call.output, call).mean()) for call in recording.calls]
    networks = [count for count, (_, row) in zip(plan.networks, plan.places, strict=True) if row == 0]
    assert sorted(range(3), key=j.__getitem__) == sorted(range(3), key=networks.__getitem__) and len(set(networks)) > 1


def test_values_are_mean_gradients_however_rows_share_passes(pipeline, recording) -> None:
    space = ComponentSpace.of(pipeline, "weight")
    what = (pipeline.unet, recording, ConceptErasure(), space)
    one, other = (second_order_scores(*what, **OPTIONS, rows_per_pass=rows, progress=False) for rows in (5, 32))
    assert_close(one.values, other.values)
    ablations = [Ablation.random(space.n, 0.25, seed) for seed in range(10)]
    changes = [[found.curvature.change(ablation) for ablation in ablations] for found in (one, other)]
    assert_close(*(torch.tensor(change) for change in changes), 1e-2)
    assert one.stretch == pytest.approx(other.stretch, rel=1e-2)
    plan = NetworksPlan.of(recording, ConceptErasure(), 10, 32)
    expected = torch.zeros(space.n)
    for place, (number, row) in enumerate(plan.places):
        drawn = plan.ablations(row, space.n, 0.25, 0)[: plan.networks[place]]
        call = recording.calls[number].select_rows([row] * len(drawn))
        with cad_fast.rows(pipeline.unet, drawn, space, gradients="scores") as engine:
            ConceptErasure()(call.run(pipeline.unet), call).sum().backward()
        sums = torch.cat([(engine.kept[e.module] + engine.ablated[e.module]).flatten() for e in space])
        expected += sums / len(drawn) / len(plan.places)
    assert_close(one.values, expected)


def test_curvature_predicts_what_scores_alone_cannot(pipeline, recording, tmp_path) -> None:
    attributor = Attributor(pipeline, kind="weight", method="second_order")
    scores = attributor.run(recording, output_dir=tmp_path, progress=False)
    ablations = [Ablation.random(len(scores), 0.05, seed) for seed in range(100)]
    measured = attributor.measured(recording, ablations, progress=False)
    alone = Scores(scores.values, scores.space)
    r = [
        float(torch.corrcoef(torch.stack([predicted_change(s.values, ablations, s.curvature), measured]))[0, 1])
        for s in (alone, scores)
    ]
    assert r[1] > r[0] + 0.02
    plan = NetworksPlan.of(recording, ConceptErasure(), 20, 32)
    assert scores.provenance["cost"]["backward_passes"] == len(plan.passes)
    assert scores.provenance["estimate"]["rows"] == plan.rows
    loaded = Scores.load(tmp_path)
    for name, tensor in scores.curvature.tensors().items():
        assert torch.equal(loaded.curvature.tensors()[name], tensor)
    checked = attributor.check(loaded, recording, 40, holdout_fractions=(0.05,), progress=False)
    assert (
        checked[0].pearson
        > attributor.check(alone, recording, 40, holdout_fractions=(0.05,), progress=False)[0].pearson
    )
    first, name = list(scores.by_module())[:2]
    part, begin = scores.of_modules([name]), len(scores.by_module()[first])
    within = Ablation.from_indices(len(part), [0, 5])
    same = Ablation.from_indices(len(scores), [begin, begin + 5])
    assert part.curvature.change(within) == pytest.approx(scores.curvature.change(same), rel=1e-6)
    with pytest.raises(ValueError, match="curvature is over"):
        Scores(part.values, part.space, curvature=scores.curvature)


def test_a_stopped_run_goes_on_where_it_was(pipeline, recording, tmp_path, monkeypatch) -> None:
    attributor = Attributor(pipeline, kind="weight", method="second_order", **OPTIONS)
    expected = attributor.run(recording, rows_per_pass=8, progress=False)
    passes = interrupt(monkeypatch, second_order, "gather", 4)
    with pytest.raises(KeyboardInterrupt, match="resume=True"):
        attributor.run(recording, rows_per_pass=8, output_dir=tmp_path, progress=False)
    scores = attributor.run(recording, rows_per_pass=8, output_dir=tmp_path, resume=True, progress=False)
    assert len(passes) == scores.provenance["cost"]["forward_passes"] + 1
    assert torch.equal(scores.values, expected.values)
    assert torch.equal(scores.curvature.directions, expected.curvature.directions)


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({"kind": "neuron"}, {}, "second_order is for kind 'weight', not 'neuron'"),
        ({"objective": ConceptErasure(both_branches=True)}, {}, "moves both branches; use method='ablated_gradient'"),
        ({}, {"networks": 2}, "networks is 2, expected at least 3"),
        ({}, {"directions": 0}, "directions is 0, expected at least 1"),
    ],
)
def test_what_it_refuses(pipeline, recording, settings, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Attributor(pipeline, **settings, method="second_order", **options).run(recording, progress=False)
