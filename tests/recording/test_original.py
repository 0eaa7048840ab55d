"""Recordings towards an original: its outputs as targets, under the texts of the model at hand."""

from __future__ import annotations

import copy

import pytest
import torch

import cad_fast
from cad_fast.components.fingerprint import Fingerprint
from cad_fast.diffusion.denoisers import denoiser_of
from cad_fast.objectives import DenoisingLoss
from cad_fast.recording.original import record_original
from tests.pipelines import stable_diffusion

SETTINGS = {"num_inference_steps": 3, "guidance_scale": 3.0, "progress": False}
PROMPTS = ["a cat", "a dog", "a car"]


@pytest.fixture(scope="module")
def original():
    return stable_diffusion()


@pytest.fixture(scope="module")
def changed(original):
    pipeline = copy.deepcopy(original)
    with torch.no_grad():
        for name, parameter in denoiser_of(pipeline).named_parameters():
            if "attn2" in name:
                parameter.mul_(1.5)
    return pipeline


def test_the_targets_are_the_originals_outputs(original, changed) -> None:
    taught = cad_fast.record(original, PROMPTS, seeds=7, **SETTINGS)
    towards = record_original(changed, original, PROMPTS, seeds=7, batch_size=2, **SETTINGS)
    assert (towards.n_rows, towards.n_steps, towards.prompts) == (3, 3, PROMPTS)
    assert towards.fingerprint == Fingerprint.of(denoiser_of(changed))
    for call, seen in zip(towards.calls, taught.calls, strict=True):
        assert call.output is None and call.unconditional_output is None
        torch.testing.assert_close(call.target, seen.output)
        torch.testing.assert_close(call.sample, seen.sample)


def test_j_is_the_distance_of_the_two_models(original, changed) -> None:
    towards = record_original(changed, original, PROMPTS, seeds=7, **SETTINGS)
    call, loss = towards.calls[1], DenoisingLoss()
    with torch.no_grad():
        as_before, as_now = call.run(denoiser_of(original)), call.run(denoiser_of(changed))
    torch.testing.assert_close(loss(as_before, call), torch.zeros(3), atol=1e-8, rtol=0)
    torch.testing.assert_close(loss(as_now, call), -(as_now - as_before).square().mean((1, 2, 3)))


def test_the_texts_are_those_of_the_model_at_hand(original, changed) -> None:
    blind = copy.copy(changed)
    blind.text_encoder = copy.deepcopy(changed.text_encoder)
    with torch.no_grad():
        for parameter in blind.text_encoder.parameters():
            parameter.mul_(1.1)
    mine = record_original(blind, original, "a cat", seeds=7, **SETTINGS).calls[2]
    theirs = record_original(changed, original, "a cat", seeds=7, **SETTINGS).calls[2]
    assert not torch.equal(mine.inputs["encoder_hidden_states"], theirs.inputs["encoder_hidden_states"])
    assert torch.equal(mine.target, theirs.target) and torch.equal(mine.sample, theirs.sample)


def test_an_original_that_is_none_is_refused(original, changed) -> None:
    with pytest.raises(ValueError, match="the original is the pipeline itself"):
        record_original(changed, changed, "a cat", **SETTINGS)
    with pytest.raises(ValueError, match="another model: their parameters have other names or shapes"):
        record_original(changed, cad_fast.zoo.load(), "a cat", **SETTINGS)
    other = copy.copy(original)
    other.scheduler = type(original.scheduler).from_config(original.scheduler.config, prediction_type="v_prediction")
    with pytest.raises(ValueError, match="the original predicts v_prediction, the pipeline epsilon"):
        record_original(changed, other, "a cat", **SETTINGS)
