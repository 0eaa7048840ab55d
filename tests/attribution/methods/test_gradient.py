"""First-order attribution against the paper's formula written out, and against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cad_fast.attribution import Attributor, gradient_scores
from cad_fast.attribution.measuring.passes import merge_calls
from cad_fast.components.space import ComponentSpace
from cad_fast.diffusion.denoisers import denoiser_of
from cad_fast.objectives import CallableObjective, ConceptErasure, DenoisingLoss
from cad_fast.recording.record import record
from cad_fast.recording.renoise import renoise
from tests.pipelines import PIPELINES, UNGUIDED, stable_diffusion


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0).item()


@pytest.fixture(scope="module")
def pipeline():
    return stable_diffusion()


@pytest.fixture(scope="module")
def recording(pipeline):
    prompts = ["a cat in noto style", "a dog", "clock"]
    return record(pipeline, prompts, seeds=[3, 4, 5], num_inference_steps=4, guidance_scale=3.0, progress=False)


def paper_scores(
    pipeline, prompts: list[str], seeds: list[int], steps: int, guidance: float, names: list[str]
) -> Tensor:
    """Equation 5 of arXiv 2412.02542 step by step: one sample at a time, one timestep at a time, no recording.

    J = |eps(x_t, c) - sg(eps(x_t, empty))|^2, alpha = w * sum_t dJ/dw, x_t from the guided trajectory.
    """
    unet, scheduler = pipeline.unet, pipeline.scheduler
    weights = [unet.get_submodule(name).weight for name in names]
    for weight in weights:
        weight.requires_grad_(True)
    sums = [torch.zeros_like(weight) for weight in weights]

    def encode(text: str) -> Tensor:
        ids = pipeline.tokenizer(text, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            return pipeline.text_encoder(ids)[0]

    empty = encode("")
    for prompt, seed in zip(prompts, seeds, strict=True):
        text = encode(prompt)
        scheduler.set_timesteps(steps)
        sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            conditional = unet(sample, t, encoder_hidden_states=text).sample
            unconditional = unet(sample, t, encoder_hidden_states=empty).sample.detach()
            gradients = torch.autograd.grad((conditional - unconditional).square().sum(), weights)
            for total, gradient in zip(sums, gradients, strict=True):
                total += gradient
            noise = unconditional + guidance * (conditional.detach() - unconditional)
            sample = scheduler.step(noise, t, sample).prev_sample
    for weight in weights:
        weight.requires_grad_(False)
    return torch.cat([(weight.detach() * total).flatten() for weight, total in zip(weights, sums, strict=True)])


@pytest.mark.parametrize("target", ["feed-forward", "cross-attention-kv", "convolution"])
def test_scores_are_the_papers(pipeline, recording, target):
    space = ComponentSpace.of(pipeline, "weight", target)
    scores = gradient_scores(pipeline.unet, recording, ConceptErasure(), space, rows_per_pass=5, progress=False)
    names = [entry.module for entry in space]
    expected = paper_scores(pipeline, recording.prompts, recording.seeds, 4, 3.0, names)
    assert cosine(scores, expected) >= 0.99999
    rows = recording.n_rows * recording.n_steps
    assert torch.allclose(scores * rows, expected, rtol=1e-2, atol=1e-3 * expected.abs().max())


@pytest.mark.parametrize("kind", ["neuron", "filter", "head"])
def test_gates_give_the_sums_over_weights(pipeline, recording, kind):
    space = ComponentSpace.of(pipeline, kind)
    by_gate, by_sum = (
        gradient_scores(pipeline.unet, recording, ConceptErasure(), space, via=via, progress=False)
        for via in ("gate", "weight")
    )
    assert cosine(by_gate, by_sum) >= 0.99999
    assert torch.allclose(by_gate, by_sum, rtol=1e-2, atol=1e-4 * by_sum.abs().max())


@pytest.mark.parametrize("kind", ["weight", "neuron", "filter", "head"])
def test_scores_are_the_change_of_j_to_first_order(pipeline, recording, kind):
    """J(kept) - J(scaled down a little), by finite differences on the component's weights in float64."""
    import copy

    space = ComponentSpace.of(pipeline, kind)
    objective = ConceptErasure()
    scores = gradient_scores(pipeline.unet, recording, objective, space, progress=False)
    unet = copy.deepcopy(pipeline.unet).double()
    call = merge_calls(recording.calls)

    def j() -> float:
        inputs = {
            name: value.double()
            for name, value in call.inputs.items()
            if torch.is_tensor(value) and value.is_floating_point()
        }
        with torch.no_grad():
            return (call.run(unet, **inputs) - call.unconditional_output).square().flatten(1).sum(1).mean().item()

    step = 1e-4
    for component in scores.abs().topk(3).indices.tolist():
        entry = next(e for e in reversed(space.entries) if e.offset <= component)
        weight = unet.get_submodule(entry.module).weight.data.view(-1)
        indices = entry.weight_indices(torch.tensor([component - entry.offset]))
        original = weight[indices].clone()
        weight[indices] = original * (1 + step)
        high = j()
        weight[indices] = original * (1 - step)
        low = j()
        weight[indices] = original
        assert (high - low) / (2 * step) == pytest.approx(scores[component].item(), rel=1e-2)


@pytest.mark.parametrize("rows_per_pass", [1, 2, 3, 7, 100])
def test_scores_do_not_depend_on_the_size_of_a_pass(pipeline, recording, rows_per_pass):
    space = ComponentSpace.of(pipeline, "neuron")
    scores, one = (
        gradient_scores(pipeline.unet, recording, ConceptErasure(), space, rows_per_pass=size, progress=False)
        for size in (rows_per_pass, 1)
    )
    assert torch.allclose(scores, one, rtol=1e-3, atol=1e-5 * one.abs().max())


@pytest.mark.parametrize("name", [name for name in PIPELINES if name not in UNGUIDED])
def test_every_architecture(name):
    factory, kwargs = PIPELINES[name]
    pipeline = factory()
    recording = record(pipeline, ["a cat", "a dog"], num_inference_steps=2, progress=False, **kwargs)
    before = {key: value.clone() for key, value in denoiser_of(pipeline).state_dict().items()}
    scores = Attributor(pipeline, target_modules="attention").run(recording, progress=False)
    assert scores.values.abs().sum() > 0
    after = denoiser_of(pipeline).state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_denoising_loss_scores_have_the_sign_of_helping(pipeline, recording):
    """Removing the lowest (negative) components must lower the denoising loss, removing the highest must raise it."""
    noised = renoise(recording, pipeline, timesteps=4, seed=1)
    objective = DenoisingLoss()
    space = ComponentSpace.of(pipeline, "weight", "all")
    scores = gradient_scores(pipeline.unet, noised, objective, space, progress=False)
    call = merge_calls(noised.calls)

    def loss_without(components: Tensor) -> float:
        parts = space.split_indices(components.sort().values)
        originals = {}
        for name, indices in parts.items():
            weight = pipeline.unet.get_submodule(name).weight.data.view(-1)
            originals[name] = weight[indices].clone()
            weight[indices] *= 0.9
        with torch.no_grad():
            loss = -objective(call.run(pipeline.unet), call).mean().item()
        for name, indices in parts.items():
            pipeline.unet.get_submodule(name).weight.data.view(-1)[indices] = originals[name]
        return loss

    base = loss_without(torch.empty(0, dtype=torch.int64))
    assert loss_without(scores.topk(200, largest=False).indices) < base
    assert loss_without(scores.topk(200).indices) > base


def test_bfloat16_is_summed_in_float32(pipeline, recording):
    import copy

    half = copy.copy(pipeline)
    half.unet = copy.deepcopy(pipeline.unet).bfloat16()
    calls = record(
        pipeline, recording.prompts, seeds=recording.seeds, num_inference_steps=4, guidance_scale=3.0, progress=False
    )
    for call in calls.calls:
        call.inputs = {
            k: v.bfloat16() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in call.inputs.items()
        }
        call.output = None
    space = ComponentSpace.of(pipeline.unet)
    scores = gradient_scores(half.unet, calls, ConceptErasure(), space, progress=False)
    expected = gradient_scores(pipeline.unet, recording, ConceptErasure(), space, progress=False)
    assert scores.dtype == torch.float32
    assert cosine(scores, expected) > 0.98


def test_an_edited_model_is_noticed(pipeline, recording):
    space = ComponentSpace.of(pipeline)
    weight = pipeline.unet.conv_in.weight
    original = weight.detach().clone()
    try:
        weight.data *= 1.5
        with pytest.raises(ValueError, match="record again"):
            gradient_scores(pipeline.unet, recording, ConceptErasure(), space, progress=False)
    finally:
        weight.data.copy_(original)


def test_the_model_is_left_as_it_was(pipeline, recording):
    unet = pipeline.unet
    unet.train()
    unet.conv_in.weight.requires_grad_(True)
    try:
        broken = CallableObjective(lambda output, call: output.flatten(1).sum(1) * float("nan"), "broken")
        with pytest.raises(ValueError, match="broken is nan at step 0"):
            gradient_scores(unet, recording, broken, ComponentSpace.of(unet, "filter"), progress=False)
        assert unet.training and unet.conv_in.weight.requires_grad and not unet.conv_out.weight.requires_grad
        assert all(module.training for module in unet.modules())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in unet.modules())
        assert all(parameter.grad is None for parameter in unet.parameters())
    finally:
        unet.eval().requires_grad_(False)


def test_wrong_settings(pipeline, recording):
    with pytest.raises(ValueError, match="unknown method"):
        Attributor(pipeline, method="magic")
    with pytest.raises(ValueError, match="no gates"):
        gradient_scores(
            pipeline.unet, recording, ConceptErasure(), ComponentSpace.of(pipeline), via="gate", progress=False
        )
    with pytest.raises(ValueError, match="rows_per_pass is 0"):
        gradient_scores(
            pipeline.unet, recording, ConceptErasure(), ComponentSpace.of(pipeline), rows_per_pass=0, progress=False
        )
    unguided = record(pipeline, "a cat", num_inference_steps=1, guidance_scale=1.0, progress=False)
    with pytest.raises(ValueError, match="guidance"):
        Attributor(pipeline, ConceptErasure("unconditional")).run(unguided, progress=False)
