"""The sensitivity of the output against the squared Jacobian written out, one output element at a time."""

from __future__ import annotations

import pytest
import torch

from cad_fast.attribution import Attributor
from cad_fast.attribution.measuring.passes import gather
from cad_fast.attribution.measuring.plans import plan_passes
from cad_fast.attribution.methods.sensitivity import output_sensitivity
from cad_fast.components.space import ComponentSpace
from cad_fast.objectives import CallableObjective, ConceptErasure


def squared_jacobian(pipeline, recording, space):
    """h_i: the sum over output elements of (w_i d output / d w_i)^2, the mean over rows; by one backward each."""
    modules = space.modules(pipeline.unet)
    weights = [modules[entry.module].weight for entry in space]
    flags = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_(True)
    everything = CallableObjective(lambda output, call: output.flatten(1).sum(1), "all")
    total = torch.zeros(space.n, dtype=torch.float64)
    rows = 0
    for pieces in plan_passes(recording, everything, 1):
        output = gather(recording, pieces).run(pipeline.unet).flatten()
        rows += 1
        for element in output:
            gradients = torch.autograd.grad(element, weights, retain_graph=True)
            per_component = [
                entry.reduce((weight.detach() * gradient).double())
                for entry, weight, gradient in zip(space, weights, gradients, strict=True)
            ]
            total += torch.cat(per_component).square()
    for weight, flag in zip(weights, flags, strict=True):
        weight.requires_grad_(flag)
    return total / rows


@pytest.mark.parametrize("kind", ["weight", "neuron", "filter"])
def test_the_mean_over_signs_is_the_squared_jacobian(pipeline, recording, kind):
    target = {"weight": r".*attn2\.to_k", "neuron": "feed-forward", "filter": r".*conv_out"}[kind]
    one = recording.select(rows=[0], steps=[0])
    space = ComponentSpace.of(pipeline, kind, target)
    exact = squared_jacobian(pipeline, one, space)
    probes = 400
    found = output_sensitivity(pipeline.unet, one, None, space, probes=probes, progress=False).double()
    assert (found >= 0).all()
    # One probe's estimate is a square of mean h: its relative spread is at most sqrt(2) or, for the sum, less.
    big = exact > exact.max() * 1e-3
    spread = (found[big] / exact[big] - 1).square().mean().sqrt()
    assert spread < 1.5 * (2 / probes) ** 0.5
    assert found.sum().item() == pytest.approx(exact.sum().item(), rel=5 * (2 / probes) ** 0.5)


def test_rows_of_a_pass_have_signs_of_their_own(pipeline, recording):
    """With the same signs in every row the cross terms would stay: rows at almost the same input would count double."""
    space = ComponentSpace.of(pipeline, "neuron")
    twice = recording.select(rows=[0, 0], steps=[0])
    alone = squared_jacobian(pipeline, recording.select(rows=[0], steps=[0]), space)
    found = output_sensitivity(pipeline.unet, twice, None, space, probes=300, rows_per_pass=2, progress=False)
    assert found.double().sum().item() == pytest.approx(alone.sum().item(), rel=0.25)


def test_the_attributor_runs_resumes_and_labels_it(pipeline, recording, tmp_path):
    objective = ConceptErasure(timesteps=(400, 1000))
    attributor = Attributor(pipeline, objective, kind="neuron", method="sensitivity", probes=2, seed=3)
    scores = attributor.run(recording, concept="cat", output_dir=tmp_path, rows_per_pass=2, progress=False)
    again = attributor.run(recording, concept="cat", rows_per_pass=2, progress=False)
    assert torch.equal(scores.values, again.values)
    assert scores.provenance["method"] == "sensitivity"
    assert scores.provenance["options"] == {"probes": 2, "seed": 3}
    cost = scores.provenance["cost"]
    assert cost["backward_passes"] == 2 * cost["forward_passes"] > 0
    other = Attributor(pipeline, objective, kind="neuron", method="sensitivity", probes=2, seed=4)
    assert not torch.equal(scores.values, other.run(recording, rows_per_pass=2, progress=False).values)


def test_only_the_objectives_window_counts(pipeline, recording):
    low = min(recording.timesteps)
    late = Attributor(pipeline, ConceptErasure(timesteps=(0, low)), kind="neuron", method="sensitivity")
    whole = late.run(recording.select(steps=[recording.n_steps - 1]), progress=False)
    assert torch.equal(late.run(recording, progress=False).values, whole.values)


def test_bad_settings_are_refused(pipeline, recording):
    with pytest.raises(ValueError, match="probes is 0"):
        Attributor(pipeline, kind="neuron", method="sensitivity", probes=0).run(recording, progress=False)
    with pytest.raises(ValueError, match="nothing to hold out"):
        Attributor(pipeline, kind="neuron", method="sensitivity").run(recording, holdout=8, progress=False)
