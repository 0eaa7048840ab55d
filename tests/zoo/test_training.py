"""The recipes of the embedded models: training sees what the pipeline does, and continues where it stopped."""

import copy

import pytest
import torch
from diffusers.models.attention_processor import JointAttnProcessor2_0
from torch import nn

from cad_fast.zoo.concepts import OBJECTS, SHOWN_LESS
from cad_fast.zoo.training.data import EmojiSet
from cad_fast.zoo.training.flow import TextToVelocity
from cad_fast.zoo.training.flow_models import (
    PROMPT_LENGTH,
    make_flow_pipeline,
    make_projecting_encoder,
    make_transformer,
)
from cad_fast.zoo.training.models import make_tokenizer, make_vae
from cad_fast.zoo.training.stage import Recipe, Stage
from cad_fast.zoo.training.train import sampling_weights

PROMPTS = ["a cat in noto style", "fluent style"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"), PROMPT_LENGTH)


@pytest.fixture(scope="module")
def model(tokenizer):
    """With weights that are no zeros, so that everything acts on the output."""
    torch.manual_seed(0)
    encoders = [make_projecting_encoder(tokenizer) for _ in range(2)]
    model = TextToVelocity(*encoders, make_transformer()).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize(("options", "absent"), [({}, 256), ({"max_sequence_length": 16}, 16)])
def test_training_sees_what_the_pipeline_does(model, tokenizer, options, absent):
    """The same velocity, of one token that stands for all those that the pipeline appends in T5's place."""
    transformer = copy.deepcopy(model.transformer)
    transformer.set_attn_processor(JointAttnProcessor2_0())
    vae = make_vae()
    vae.register_to_config(shift_factor=0.0)
    pipeline = make_flow_pipeline(vae, model.text_encoder, model.text_encoder_2, tokenizer, transformer)
    pipeline.set_progress_bar_config(disable=True)
    calls = []
    transformer.register_forward_hook(
        lambda module, args, inputs, outputs: calls.append((inputs, outputs[0])), with_kwargs=True
    )
    generator = torch.Generator().manual_seed(0)
    pipeline(PROMPTS, num_inference_steps=3, guidance_scale=2.0, generator=generator, **options)
    inputs, expected = calls[1]  # the first is at the end of the noise, where everything is as large as noise
    assert inputs["encoder_hidden_states"].shape[1] == PROMPT_LENGTH + absent
    ids = tokenizer(["", "", *PROMPTS], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        velocity = model(inputs["hidden_states"], inputs["timestep"], ids, torch.full((4,), float(absent)))
        fewer = model(inputs["hidden_states"], inputs["timestep"], ids, torch.full((4,), absent / 2))
    torch.testing.assert_close(velocity, expected, atol=1e-4, rtol=1e-4)
    assert (fewer - expected).abs().max() > 1e-2  # how many there are is seen


def test_a_stage_continues_where_it_stopped(tmp_path, monkeypatch):
    """Stopped and continued gives the weights of one go, with several optimizers at their own learning rates."""
    monkeypatch.setattr("cad_fast.zoo.training.stage.CHECKPOINT_EVERY", 3)

    class StoppedError(Exception):
        pass

    def trained(folder, stop_at=None):
        torch.manual_seed(0)
        folder.mkdir(exist_ok=True)
        module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 1))
        optimizers = [torch.optim.SGD(module[0].parameters(), 0.1), torch.optim.AdamW(module[1].parameters(), 0.01)]
        stage = Stage("small", module, Recipe(steps=8, batch=2, lr=0.01, warmup=2), folder, optimizers=optimizers)

        def loss(generator, step):
            if step == stop_at:
                raise StoppedError
            return stage.module(torch.randn(2, 4, generator=generator)).square().mean()

        return stage.run(loss, seed=1).state_dict()

    whole = trained(tmp_path / "whole")
    with pytest.raises(StoppedError):
        trained(tmp_path / "parts", stop_at=5)
    continued = trained(tmp_path / "parts")
    assert all(torch.equal(continued[name], value) for name, value in whole.items())


def test_every_object_is_shown_alike_but_those_of_the_model():
    """Whatever the number of its pictures."""
    objects = torch.arange(len(OBJECTS)).repeat_interleave(torch.arange(1, len(OBJECTS) + 1))
    empty = torch.zeros(len(objects), dtype=torch.int64)
    data = EmojiSet(torch.zeros(len(objects), 3, 32, 32, dtype=torch.uint8), objects, empty, empty.bool())
    weights = sampling_weights(data, SHOWN_LESS["emoji-flow"])
    shown = {name: weights[objects == number].sum().item() for number, name in enumerate(OBJECTS)}
    assert shown == pytest.approx({name: SHOWN_LESS["emoji-flow"].get(name, 1.0) for name in OBJECTS})
