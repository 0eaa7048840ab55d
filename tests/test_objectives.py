"""Objectives against their formulas in float64, and their errors."""

from __future__ import annotations

import json

import pytest
import torch

from cad_fast.diffusion.timesteps import TimestepWindow
from cad_fast.objectives import CallableObjective, ConceptErasure, DenoisingLoss, objective_from_config
from cad_fast.recording.call import DenoiserCall
from cad_fast.recording.record import record, with_base
from cad_fast.recording.renoise import renoise
from tests.pipelines import flux, stable_diffusion

SHAPE = (3, 4, 5, 5)


def make_call(timestep: float = 500.0, channels: int = 4, **changes) -> DenoiserCall:
    sample = torch.randn(SHAPE)
    shape = (3, channels, 5, 5)
    tensors = {name: torch.randn(shape) for name in ("output", "unconditional_output", "base_output")}
    return DenoiserCall(
        7, timestep, {"sample": sample, "timestep": timestep}, "sample", **{**tensors, "target": sample + 1, **changes}
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("base", ["unconditional", "base"])
def test_concept_erasure(base: str, dtype: torch.dtype) -> None:
    call = make_call()
    output = torch.randn(SHAPE).to(dtype)
    values = ConceptErasure(base)(output, call)
    reference = getattr(call, f"{base}_output").double()
    expected = (output.double() - reference).square().sum((1, 2, 3))
    assert values.dtype == torch.float32 and values.shape == (3,)
    torch.testing.assert_close(values.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("guidance", [0.5, 2.0])
def test_negative_guidance_moves_the_reference_beyond_the_base(guidance: float) -> None:
    call = make_call()
    output = torch.randn(SHAPE)
    reference = call.unconditional_output - guidance * (call.output - call.unconditional_output)
    expected = (output - reference).square().sum((1, 2, 3))
    torch.testing.assert_close(ConceptErasure(negative_guidance=guidance)(output, call), expected)
    with pytest.raises(ValueError, match="negative_guidance needs the recorded output"):
        ConceptErasure(negative_guidance=guidance)(output, make_call(output=None))
    with pytest.raises(ValueError, match="negative_guidance is -1, expected at least 0"):
        ConceptErasure(negative_guidance=-1)


def test_half_precision_does_not_overflow() -> None:
    call = make_call(unconditional_output=torch.zeros(SHAPE).half())
    values = ConceptErasure()(torch.full(SHAPE, 300.0).half(), call)
    assert values.tolist() == [300.0**2 * 100] * 3


def test_gradient_flows_to_the_output_only() -> None:
    reference = torch.randn(SHAPE, requires_grad=True)
    call = make_call(unconditional_output=reference)
    output = torch.randn(SHAPE, requires_grad=True)
    ConceptErasure()(output, call).sum().backward()
    torch.testing.assert_close(output.grad, 2 * (output - reference).detach())
    assert reference.grad is None


def test_denoising_loss_grows_when_the_target_is_met_better() -> None:
    call = make_call()
    worse, better = call.target + 2.0, call.target + 0.5
    torch.testing.assert_close(DenoisingLoss()(worse, call), torch.full((3,), -4.0))
    assert (DenoisingLoss()(better, call) > DenoisingLoss()(worse, call)).all()


def test_learned_variances_are_left_out() -> None:
    call = make_call(channels=8)
    other = call.output.clone()
    other[:, 4:] += 100
    for objective in (ConceptErasure(), DenoisingLoss()):
        assert torch.equal(objective(call.output, call), objective(other, call))


def test_repeated_rows() -> None:
    call = make_call()
    values = ConceptErasure()(call.output[[0, 0, 2]], call.select_rows([0, 0, 2]))
    assert torch.equal(values, ConceptErasure()(call.output, call)[[0, 0, 2]])
    with pytest.raises(ValueError, match=r"shape \[2, 4, 5, 5\], but the call has 3 rows"):
        ConceptErasure()(call.output[:2], call)


def test_window_and_selection_agree() -> None:
    recording = record(stable_diffusion(), ["a cat"], num_inference_steps=5, progress=False)
    window = (recording.timesteps[3], recording.timesteps[1])
    objective = ConceptErasure(timesteps=window)
    active = [call.timestep for call in recording.calls if objective.active(call)]
    assert active == recording.select(timesteps=window).timesteps == recording.timesteps[1:4]
    assert ConceptErasure().active(recording.calls[0])
    with pytest.raises(ValueError, match="looks at timesteps"):
        ConceptErasure(timesteps=(2, 3)).check(recording)
    assert ConceptErasure(timesteps=window[::-1]).timesteps == objective.timesteps


def test_rows_of_different_timesteps_must_all_be_in_the_window() -> None:
    call = make_call(timestep=torch.tensor([100.0, 200.0, 300.0]))
    assert ConceptErasure(timesteps=(100, 300)).active(call)
    assert not ConceptErasure(timesteps=(100, 299)).active(call)


def test_what_a_recording_lacks_is_named_with_the_remedy() -> None:
    pipeline = flux()
    size = {"height": 16, "width": 16, "max_sequence_length": 16}
    recording = record(pipeline, ["a cat"], num_inference_steps=2, progress=False, **size)
    with pytest.raises(ValueError, match=r"without classifier-free guidance.*true_cfg_scale.*with_base"):
        ConceptErasure().check(recording)
    with pytest.raises(ValueError, match=r"needs base_output.*with_base\(recording"):
        ConceptErasure("base")(recording.calls[0].output, recording.calls[0])
    with pytest.raises(ValueError, match=r"needs target.*record_images or renoise"):
        DenoisingLoss().check(recording)
    ConceptErasure("base").check(with_base(recording, pipeline, "a photo", progress=False))


def test_on_a_recording() -> None:
    pipeline = stable_diffusion()
    recording = record(pipeline, ["a cat", "dog"], num_inference_steps=2, progress=False)
    call = recording.calls[0]
    assert (ConceptErasure()(call.output, call) > 0).all()
    loss_call = renoise(recording, pipeline, timesteps=[500]).calls[0]
    with torch.no_grad():
        assert (DenoisingLoss()(loss_call.run(pipeline.unet), loss_call) < 0).all()


def test_users_functions() -> None:
    call = make_call()
    objective = CallableObjective(lambda output, call: output.double().flatten(1).mean(1), "brightness")
    values = objective(call.output, call)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, call.output.flatten(1).mean(1))
    with pytest.raises(ValueError, match=r"'brightness' returned shape \[\]"):
        CallableObjective(lambda output, call: output.mean(), "brightness")(call.output, call)
    with pytest.raises(TypeError, match="returned a float"):
        CallableObjective(lambda output, call: 1.0, "brightness")(call.output, call)
    with pytest.raises(TypeError, match="expected a function"):
        CallableObjective(3, "brightness")
    with pytest.raises(ValueError, match="needs 'money'"):
        CallableObjective(lambda output, call: output, "brightness", needs="money")
    with pytest.raises(ValueError, match="needs target"):
        CallableObjective(lambda output, call: output, "likeness", needs="target").check(make_call(target=None))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_named(bad: float) -> None:
    call = make_call()
    output = call.output.clone()
    output[1, 0, 0, 0] = bad
    with pytest.raises(ValueError, match=r"concept_erasure is (nan|inf) at step 7 \(timestep 500.0\) in row 1"):
        ConceptErasure()(output, call)


@pytest.mark.parametrize("objective", [ConceptErasure("base", (1, 900), 0.5), ConceptErasure(), DenoisingLoss((0, 10))])
def test_config_round_trip(objective) -> None:
    config = json.loads(json.dumps(objective.config()))
    again = objective_from_config(config)
    assert type(again) is type(objective) and again.config() == objective.config()
    assert again.timesteps == objective.timesteps and again.needs == objective.needs
    assert repr(again) == repr(objective)


def test_windows_are_written_highest_first_and_read_in_either_order() -> None:
    config = ConceptErasure(timesteps=(850, 1000)).config()
    assert config["timesteps"] == [1000.0, 850.0]
    for saved in ([1000.0, 850.0], [850.0, 1000.0]):
        assert objective_from_config({**config, "timesteps": saved}).timesteps == TimestepWindow(1000, 850)
    with pytest.raises(ValueError, match="does not fit its settings"):
        objective_from_config({**config, "timesteps": 3})


def test_config_refuses() -> None:
    for config, message in [
        ({"name": "beauty"}, "unknown objective 'beauty'"),
        ({}, "unknown objective None"),
        ({"name": "denoising_loss", "speed": 1}, "does not fit its settings"),
        (CallableObjective(len, "brightness").config(), "the function 'brightness'"),
        ({"name": "concept_erasure", "base": "none"}, "expected 'unconditional' or 'base'"),
    ]:
        with pytest.raises(ValueError, match=message):
            objective_from_config(config)
