"""The baselines' rules against slow ones in other words, and their checkpoints through the loader."""

from __future__ import annotations

import pytest
import torch

import cad_fast
from bench.baselines import BASELINES, Cad, ConceptPrune, EsdX, Uce, write_checkpoint
from bench.baselines.conceptprune import input_norms, skilled
from bench.baselines.esd import esd_loss
from bench.baselines.uce import closed_form, text_states
from cad_fast import zoo
from cad_fast.edits.files.denoiser_weights import own_parameters
from cad_fast.recording.call import DenoiserCall

QUICK = {
    "esd-x": EsdX(iterations=2, trajectories=2, batch_size=2),
    "uce": Uce(),
    "conceptprune": ConceptPrune(pairs=1),
    "cad": Cad(),
}
CHANGED = {"esd-x": "attn2", "uce": "attn2.to_", "conceptprune": "ff.net.2", "cad": "ff.net"}


@pytest.fixture(scope="module")
def pipeline():
    return zoo.load()


def test_esd_trains_towards_what_lies_beyond_the_unconditional_output() -> None:
    """For a linear network W x the gradient is 2 (W x - target) x' over the number of outputs."""
    weight = torch.randn(4, 3, requires_grad=True)
    sample, conditional, unconditional = torch.randn(2, 3), torch.randn(2, 4), torch.randn(2, 4)
    call = DenoiserCall(
        step=0,
        timestep=1.0,
        inputs={"sample": sample, "timestep": torch.tensor(1)},
        sample_key="sample",
        output=conditional,
        unconditional_output=unconditional,
    )
    esd_loss(sample @ weight.T, call, negative_guidance=1.5).backward()
    expected = torch.zeros(4, 3)
    for row in range(2):
        for out in range(4):
            target = 2.5 * unconditional[row, out] - 1.5 * conditional[row, out]
            expected[out] += 2 * (weight[out].detach() @ sample[row] - target) * sample[row] / 8
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, expected)


def test_uce_is_the_least_squares_solution() -> None:
    weight, erased, guides, preserved = torch.randn(5, 6), torch.randn(3, 6), torch.randn(3, 6), torch.randn(4, 6)
    found = closed_form(weight, erased, guides, preserved, (2.0, 0.7, 0.3))
    inputs = torch.cat([2.0**0.5 * erased, 0.7**0.5 * preserved, 0.3**0.5 * torch.eye(6)]).double()
    wanted = torch.cat([2.0**0.5 * guides, 0.7**0.5 * preserved, 0.3**0.5 * torch.eye(6)]).double() @ weight.double().T
    expected = torch.linalg.lstsq(inputs, wanted).solution.T
    torch.testing.assert_close(found, expected.float())


def test_uce_takes_the_text_from_the_concepts_token_on(pipeline) -> None:
    with torch.no_grad():
        states = pipeline.encode_prompt("a car in noto style", pipeline.device, 1, False)[0][0]
    assert torch.equal(text_states(pipeline, "a car in noto style", "car"), states[2:])
    assert torch.equal(text_states(pipeline, "a car in noto style", None), states[1:])
    with pytest.raises(ValueError, match="'a cat' has no word 'car'"):
        text_states(pipeline, "a cat", "car")


def test_conceptprunes_mask_against_a_loop() -> None:
    weight, target, base = torch.randn(7, 11), torch.rand(11), torch.rand(11)
    mask = skilled(weight, target, base, ratio=0.4)
    for row in range(7):
        importance = [abs(float(weight[row, column])) * float(target[column]) for column in range(11)]
        top = sorted(range(11), key=lambda column: -importance[column])[:4]
        for column in range(11):
            more = importance[column] > abs(float(weight[row, column])) * float(base[column])
            assert bool(mask[row, column]) == (column in top and more)
    assert mask.any() and not mask.all()


def test_conceptprunes_norms_are_those_of_each_tokens_direction(pipeline) -> None:
    """Two tokens of one picture, weighed alike whatever their size; one entry per call of the denoiser."""
    name = "mid_block.attentions.0.transformer_blocks.0.ff.net.2"
    module = pipeline.unet.get_submodule(name)
    seen = []
    handle = module.register_forward_hook(lambda _, arguments, __: seen.append(arguments[0].clone()))
    try:
        norms = input_norms(pipeline, ["a car in noto style"], 3, {name: module})[name]
    finally:
        handle.remove()
    assert norms.shape == (zoo.generation().num_inference_steps, 384)
    unit = [token / token.norm() for row in seen[5] for token in row]
    torch.testing.assert_close(norms[5], torch.stack(unit).square().sum(0).sqrt())


@pytest.mark.parametrize("method", BASELINES)
def test_a_checkpoint_loads_and_changes_what_it_says(method, pipeline, tmp_path) -> None:
    before = {name: tensor.clone() for name, tensor in own_parameters(pipeline.unet).items()}
    path = write_checkpoint(QUICK[method], pipeline, "car", tmp_path / method)
    after = own_parameters(pipeline.unet)
    assert all(torch.equal(before[name], after[name]) for name in before), "the pipeline is left as it was"
    erased = own_parameters(cad_fast.load_pipeline("zoo:emoji", denoiser_weights=path).unet)
    changed = [name for name in before if not torch.equal(before[name], erased[name])]
    assert changed and all(CHANGED[method] in name for name in changed)
    if method in ("conceptprune", "cad"):
        assert all(bool(((erased[name] == before[name]) | (erased[name] == 0)).all()) for name in changed)
