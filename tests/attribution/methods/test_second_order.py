"""Scores of the second order: mean gradients however rows share passes, and what the curvature predicts."""

from __future__ import annotations

import pytest
import torch

import cad_fast
from cad_fast import Ablation, ComponentSpace, ConceptErasure, zoo
from cad_fast.attribution import Attributor, Scores, memory
from cad_fast.attribution.methods import second_order
from cad_fast.attribution.methods.second_order import NetworksPlan, second_order_scores
from cad_fast.attribution.trust import predicted_change
from tests.attribution.common import assert_close, interrupt

OPTIONS = {"fraction": 0.25, "networks": 10, "directions": 40}


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
    looked = NetworksPlan.looking(recording, ConceptErasure(), 32)
    assert looked.networks == [3] * len(plan.places) and all(len(pairs) % 3 == 0 for pairs in looked.passes)
    assert scores.provenance["cost"]["backward_passes"] == len(plan.passes) + len(looked.passes)
    assert scores.provenance["estimate"]["rows"] == plan.rows + looked.rows
    # What is kept, in memory and as a file, is at most four times the scores.
    assert scores.curvature.nbytes == scores.provenance["estimate"]["curvature_bytes"] <= 4 * 4 * len(scores)
    assert (tmp_path / "scores.safetensors").stat().st_size <= 20.2 * len(scores)
    everything = Attributor(pipeline, kind="weight", method="second_order", share=1.0).run(recording, progress=False)
    assert torch.equal(everything.values, scores.values)
    best = predicted_change(everything.values, ablations, everything.curvature)
    # Of random weights none matters much more than others. Of trained ones they do: see below.
    assert r[1] < float(torch.corrcoef(torch.stack([best, measured]))[0, 1]) < r[1] + 0.05
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


def test_a_ninth_of_trained_weights_predicts_nearly_as_well_as_all() -> None:
    embedded = zoo.load()
    recording = cad_fast.record(
        embedded, zoo.prompts("cat")[0], seeds=7, num_inference_steps=4, guidance_scale=3.0, progress=False
    )
    space = ComponentSpace.of(embedded, "weight")
    ablations = [Ablation.random(space.n, 0.05, seed) for seed in range(40)]
    measured = Attributor(embedded, components=space).measured(recording, ablations, progress=False)
    r = {}
    for share in (0.11, 1.0):
        attributor = Attributor(embedded, components=space, method="second_order", share=share)
        scores = attributor.run(recording, progress=False)
        for name, curvature in (("alone", None), (share, scores.curvature)):
            predicted = predicted_change(scores.values, ablations, curvature)
            r[name] = float(torch.corrcoef(torch.stack([predicted, measured]))[0, 1])
    assert r[0.11] > r["alone"] + 0.02 and r[0.11] > r[1.0] - 0.01


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
        ({}, {"share": 0.0}, "share is 0.0, expected more than 0 and at most 1"),
        ({}, {"share": 1.5}, "share is 1.5, expected more than 0 and at most 1"),
    ],
)
def test_what_it_refuses(pipeline, recording, settings, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Attributor(pipeline, **settings, method="second_order", **options).run(recording, progress=False)


def test_too_little_memory_is_refused_before_the_work(pipeline, recording, monkeypatch) -> None:
    space = ComponentSpace.of(pipeline, "weight")
    plan = NetworksPlan.of(recording, ConceptErasure(), 20, 32)
    needed = second_order.memory_needed(space, plan, 0.05, 128, 0.11)
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed - 1)
    passes = interrupt(monkeypatch, second_order, "gather", 1)
    attributor = Attributor(pipeline, kind="weight", method="second_order")
    with pytest.raises(ValueError, match=f"needs {needed:,} bytes.*share.*method='ablated_gradient'"):
        attributor.run(recording, progress=False)
    assert not passes
    smaller = Attributor(pipeline, kind="weight", method="second_order", share=0.01)
    with pytest.raises(KeyboardInterrupt):  # it begins
        smaller.run(recording, progress=False)
