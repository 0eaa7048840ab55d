"""Which calls share a pass, and that joining and splitting are inverse to one another."""

import inspect

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from cad_fast.serving.engine.calls import Part, PartCall, finite_rows, join, split


def forward(sample, timestep, encoder_hidden_states=None, added=None, img_ids=None, scale=1.0, generator=None):
    return (sample,)


PART = Part("denoiser", forward, inspect.signature(forward), 0, frozenset({"generator"}))


def call(rows=2, timestep=500, size=4, tokens=3, **more) -> PartCall:
    inputs = {"added": {"ids": torch.randn(rows, 6)}, "img_ids": torch.arange(6.0).view(2, 3), **more}
    return PartCall(
        PART, PART.bind((torch.randn(rows, 4, size, size), timestep, torch.randn(rows, tokens, 8)), inputs), number=1
    )


@pytest.mark.parametrize(
    "other",
    [
        {"rows": 1},
        {"timestep": torch.tensor(20)},
        {"timestep": torch.tensor([7])},
        {"timestep": torch.tensor([7, 8, 9]), "rows": 3},
        {"generator": torch.Generator()},
    ],
    ids=lambda other: "-".join(other) or "same",
)
def test_fits(other) -> None:
    first, second = call(), call(**other)
    assert first.fits(second) and second.fits(first)
    joined = join([first, second])
    total = first.rows + second.rows
    assert joined["sample"].shape == (total, 4, 4, 4) and joined["added"]["ids"].shape == (total, 6)
    assert joined["timestep"].shape == (total,) and joined["img_ids"].shape == (2, 3)
    assert joined["timestep"][:2].tolist() == [500, 500]
    for name in ("sample", "encoder_hidden_states"):
        parts = split(joined[name], [first, second])
        assert torch.equal(parts[0], first.inputs[name]) and torch.equal(parts[1], second.inputs[name])


@pytest.mark.parametrize(
    "other",
    [
        {"size": 8},
        {"tokens": 5},
        {"timestep": torch.tensor(20.0)},
        {"img_ids": torch.zeros(2, 3)},
        {"img_ids": None},
        {"scale": 2.0},
        {"added": {"other": torch.randn(2, 6)}},
        {"added": {"ids": torch.randn(2, 6), "more": torch.randn(2, 1)}},
        {"added": {"ids": torch.randn(2, 6).double()}},
    ],
    ids=lambda other: "-".join(other) or "same",
)
def test_does_not_fit(other) -> None:
    assert not call().fits(call(**other)) and not call(**other).fits(call())


def test_calls_of_other_parts_and_of_generators_that_matter() -> None:
    other = Part("vae", forward, PART.signature, 0)
    inputs = [other.bind((torch.randn(1, 2), 1), {"generator": torch.Generator()}) for _ in range(2)]
    first, second = (PartCall(other, each, 1) for each in inputs)
    assert not first.fits(second) and not first.fits(call(1))


def test_arguments_that_do_not_fit() -> None:
    with pytest.raises(TypeError, match="other"):
        PART.bind((torch.ones(1, 1), 1), {"other": 2})


def test_outputs() -> None:
    calls = [call(1), call(2)]
    hidden = (torch.randn(3, 5), torch.randn(3, 5))
    output = BaseModelOutput(last_hidden_state=torch.randn(3, 4), hidden_states=hidden)
    first, second = split(output, calls)
    assert type(second) is BaseModelOutput and second.attentions is None
    assert torch.equal(second[0], output[0][1:]) and torch.equal(second.hidden_states[1], hidden[1][1:])
    assert first[0].shape == (1, 4) and split(output, calls[:1]) == [output]


@pytest.mark.parametrize(
    ("output", "message"),
    [(torch.ones(()), r"shape \[\]"), ((torch.ones(2),), "expected 3 rows"), ((object(),), "an? object")],
)
def test_outputs_without_rows(output, message) -> None:
    with pytest.raises(ValueError, match=message):
        split(output, [call(1), call(2)])


def test_finite_rows() -> None:
    output = torch.randn(4, 3, 2)
    assert finite_rows((output,), 4) is None
    output[1, 2, 0], output[3, 0, 1] = torch.nan, -torch.inf
    assert finite_rows((output,), 4).tolist() == [True, False, True, False]
