"""Gradients of single rows against copies of the denoiser."""

from __future__ import annotations

import pytest
import torch

from cad_fast import Ablation, ComponentSpace, ConceptErasure
from cad_fast.attribution.gradients.per_row import row_gradients
from cad_fast.attribution.measuring.passes import merge_calls
from tests.attribution.common import assert_close
from tests.row_truth import ablated_copy


@pytest.mark.parametrize("modules", ["feed-forward", "all"])
def test_gradients_of_rows_are_those_of_ablated_copies(pipeline, recording, modules: str) -> None:
    space = ComponentSpace.of(pipeline, "weight", modules)
    call = merge_calls(recording.calls).select_rows([3, 0, 0])
    ablations = [Ablation.random(space.n, 0.2, 1), Ablation.random(space.n, 0.6, 2), Ablation.from_indices(space.n, [])]
    flags = [(parameter, parameter.requires_grad) for parameter in pipeline.unet.parameters()]
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    gradients_of_all = torch.zeros(3, space.n)

    def take(entry, gradients) -> None:
        gradients_of_all[:, entry.offset : entry.offset + entry.count] += gradients

    found = (gradients_of_all, *row_gradients(pipeline.unet, ConceptErasure(), space, call, ablations, take))
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
