"""J with both branches under ablation, against two plain calls of an ablated copy."""

from __future__ import annotations

import pytest
import torch

from cad_fast import Ablation, ComponentSpace, ConceptErasure
from cad_fast.attribution.measuring.measure import objective_under_ablations
from cad_fast.attribution.methods.ablated_gradient import ablated_gradient_scores
from cad_fast.attribution.methods.gradient import gradient_scores
from cad_fast.diffusion.denoisers import output_tensor
from cad_fast.objectives import objective_from_config
from tests.row_truth import ablated_copy

BOTH = ConceptErasure(both_branches=True)


def j_of(denoiser, recording) -> torch.Tensor:
    total = []
    for call in recording.calls:
        one = output_tensor(denoiser(**call.inputs))
        other = output_tensor(denoiser(**call.unconditional_inputs))
        total.append((one - other).square().flatten(1).sum(1))
    return torch.cat(total).mean()


@pytest.mark.parametrize("rows_per_pass", [1, 4, 30])
@pytest.mark.parametrize("kind", ["weight", "neuron"])
def test_j_is_that_of_two_calls(pipeline, recording, kind: str, rows_per_pass: int) -> None:
    space = ComponentSpace.of(pipeline, kind, "attention" if kind == "weight" else None)
    ablations = [Ablation.random(space.n, 0.2, seed) for seed in range(3)]
    what = (pipeline.unet, recording, BOTH, space)
    found = objective_under_ablations(*what, ablations, rows_per_pass=rows_per_pass, progress=False)
    with torch.no_grad():
        expected = torch.stack([j_of(ablated_copy(pipeline.unet, space, a), recording) for a in ablations])
    torch.testing.assert_close(found.float(), expected.float(), rtol=1e-3, atol=0)
    fixed = objective_under_ablations(pipeline.unet, recording, ConceptErasure(), space, ablations, progress=False)
    assert float(((fixed - found) / found).abs().min()) > 0.01


def test_gradients_flow_through_both(pipeline, recording) -> None:
    space = ComponentSpace.of(pipeline, "weight", "attention")
    found = gradient_scores(pipeline.unet, recording, BOTH, space, rows_per_pass=4, progress=False)
    copied = ablated_copy(pipeline.unet, space, Ablation.from_indices(space.n, []))
    modules = space.modules(copied)
    weights = [modules[entry.module].weight.requires_grad_(True) for entry in space]
    gradients = torch.autograd.grad(j_of(copied, recording), weights)
    expected = torch.cat([(w * g).detach().flatten() for w, g in zip(weights, gradients, strict=True)]).float()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    averaged, _ = ablated_gradient_scores(pipeline.unet, recording, BOTH, space, fraction=0.5, progress=False)
    assert float(torch.corrcoef(torch.stack([averaged.values, expected]))[0, 1]) > 0.3


def test_settings() -> None:
    assert objective_from_config(BOTH.config()).both_branches
    before = {"name": "concept_erasure", "timesteps": None, "base": "unconditional", "negative_guidance": 0.0}
    assert not objective_from_config(before).both_branches
    with pytest.raises(ValueError, match="both_branches goes with the unconditional base"):
        ConceptErasure(base="base", both_branches=True)
    with pytest.raises(ValueError, match="no negative_guidance"):
        ConceptErasure(negative_guidance=1, both_branches=True)
