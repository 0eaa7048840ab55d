"""Edited linears whose input comes again, such as a text's keys and values in every step, compute it once."""

import copy
import gc
import weakref

import pytest
import torch

from cad_fast.edits import EditManager, RowEdits
from cad_fast.remembered import report
from cad_fast.row_engine import slots
from cad_fast.serving.engine.calls import Part, PartCall, join
from tests.edits.rows.test_row_edits import random_edit
from tests.pipelines import stable_diffusion

STEPS = 5


@pytest.fixture
def computed(monkeypatch):
    """The rows of every product that is really computed."""
    rows = []

    def counting(x, *args, **kwargs):
        rows.append(len(x))
        return edited_linear(x, *args, **kwargs)

    edited_linear = slots.edited_linear
    monkeypatch.setattr(slots, "edited_linear", counting)
    return rows


def net(layers=2):
    torch.manual_seed(2)
    module = torch.nn.Sequential(*(torch.nn.Linear(6, 6) for _ in range(layers))).eval().requires_grad_(False)

    class Denoiser(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.text = module

        def forward(self, sample, timestep, encoder_hidden_states):
            return (sample + torch.stack([layer(encoder_hidden_states) for layer in self.text]).sum(0),)

    return Denoiser()


def under_edits(denoiser, assignments=(("e",), ())):
    runner = RowEdits(denoiser)
    runner.add(random_edit(denoiser, "e", 1, target=["text.0", "text.1"]))
    runner.add(random_edit(denoiser, "f", 2, target=["text.0", "text.1"]))
    return runner, [tuple((name, 1.0) for name in names) for names in assignments]


def steps(denoiser, texts, runner, rows):
    """The outputs of one call for each text, in turn."""
    outputs = []
    with torch.no_grad(), runner.rows(rows):
        for number, text in enumerate(texts):
            outputs.append(denoiser(torch.full((len(text), 6), float(number)), 1, text)[0])
    return outputs


def expected(texts, rows):
    """The same from a denoiser that meets every input for the first time."""
    found = []
    for number, text in enumerate(texts):
        denoiser = net()
        runner, _ = under_edits(denoiser)
        with torch.no_grad(), runner.rows(rows):
            found.append(denoiser(torch.full((len(text), 6), float(number)), 1, text.clone())[0])
    return found


def same(found, right) -> bool:
    return all(torch.equal(one, other) for one, other in zip(found, right, strict=True))


def test_a_text_is_read_twice_and_no_more(computed) -> None:
    denoiser = net()
    runner, rows = under_edits(denoiser)
    text = torch.randn(2, 6)
    found = steps(denoiser, [text] * STEPS, runner, rows)
    assert computed == [2] * (2 * 2), "two layers, in the first step and, to be kept, in the second"
    assert same(found, expected([text] * STEPS, rows))


def test_two_texts_in_turn(computed) -> None:
    """As with guidance in two calls."""
    denoiser = net()
    runner, rows = under_edits(denoiser)
    pair = [torch.randn(2, 6), torch.randn(2, 6)]
    found = steps(denoiser, pair * STEPS, runner, rows)
    assert len(computed) == 2 * 2 * 2
    assert same(found, expected(pair * STEPS, rows))


def test_equal_texts_are_not_the_same(computed) -> None:
    denoiser = net()
    runner, rows = under_edits(denoiser)
    text = torch.randn(2, 6)
    steps(denoiser, [text.clone() for _ in range(STEPS)], runner, rows)
    assert len(computed) == 2 * STEPS


CHANGES = {
    "the text": lambda denoiser, text: text.mul_(2),
    "a weight": lambda denoiser, text: denoiser.text[0].weight.mul_(1.001),  # more would be another model
    "the text, uncounted": lambda denoiser, text: text.data.mul_(2),
    "a weight, uncounted": lambda denoiser, text: denoiser.text[0].weight.data.view(-1)[1].mul_(1.01),
    "memory shared with numpy": lambda denoiser, text: text.numpy().__imul__(2),
    "a bias": lambda denoiser, text: denoiser.text[0].bias.add_(1),
    "another weight": lambda denoiser, text: setattr(
        denoiser.text[0], "bias", torch.nn.Parameter(torch.ones(6), requires_grad=False)
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_is_computed_anew(change) -> None:
    denoiser = net()
    runner, rows = under_edits(denoiser)
    text = torch.randn(2, 6)
    (before, *_) = steps(denoiser, [text] * 3, runner, rows)
    with torch.no_grad():
        CHANGES[change](denoiser, text)
    found = steps(denoiser, [text] * 2, runner, rows)
    assert not torch.equal(found[0], before)
    assert same(found, steps(denoiser, [text.clone(), text.clone()], runner, rows))


def test_other_edits_of_the_same_text() -> None:
    denoiser = net()
    runner, rows = under_edits(denoiser)
    _, others = under_edits(net(), [("f",), ("e",)])
    text = torch.randn(2, 6)
    for assignment in (rows, others, rows, others):
        assert same(steps(denoiser, [text] * 3, runner, assignment), expected([text] * 3, assignment))


def test_an_output_that_is_written_into_is_not_given_again() -> None:
    denoiser = net()
    runner, rows = under_edits(denoiser)
    handle = denoiser.text[0].register_forward_hook(lambda module, args, output: output.add_(1))
    text = torch.randn(2, 6)
    found = steps(denoiser, [text] * STEPS, runner, rows)
    handle.remove()
    plain = [one - 1 for one in found]
    for one, right in zip(plain, expected([text] * STEPS, rows), strict=True):
        torch.testing.assert_close(one, right)


def test_gradients_are_of_this_call() -> None:
    denoiser = net()
    runner, rows = under_edits(denoiser)
    text = torch.randn(2, 6, requires_grad=True)
    gradients = []
    with runner.rows(rows):
        for _ in range(3):
            y = denoiser(torch.zeros(2, 6), 1, text)[0]
            gradients.append(torch.autograd.grad(y.sum(), text)[0])
    assert same(gradients[1:], gradients[:-1])


def test_nothing_is_kept_without_memory(computed, monkeypatch) -> None:
    monkeypatch.setenv("CAD_FAST_REMEMBERED_BYTES", "0")
    denoiser = net()
    runner, rows = under_edits(denoiser)
    steps(denoiser, [torch.randn(2, 6)] * STEPS, runner, rows)
    assert len(computed) == 2 * STEPS


def test_what_is_kept_goes_with_the_text() -> None:
    denoiser = net()
    runner, rows = under_edits(denoiser)
    steps(denoiser, [torch.randn(2, 6)], runner, rows)  # what is prepared of the edits stays with them
    gc.collect()
    before = report()["entries"]
    text = torch.randn(2, 6)
    steps(denoiser, [text] * 3, runner, rows)
    assert report()["entries"] == before + 2
    gone = weakref.ref(text)
    del text
    gc.collect()
    assert gone() is None and report()["entries"] == before


def test_compiled_code_may_write_into_what_it_gets() -> None:
    denoiser = net()
    runner, rows = under_edits(denoiser)
    text, sample = torch.randn(2, 6), torch.zeros(2, 6)
    compiled = torch.compile(denoiser, backend="aot_eager")
    with torch.no_grad(), runner.rows(rows):
        found = [compiled(sample, 1, text)[0] for _ in range(3)]
    torch.testing.assert_close(found, expected([text], rows) * 3)


def test_a_generation(computed, monkeypatch) -> None:
    """Pictures are the same to the bit, and keys and values are computed in two of the steps."""
    pipeline = copy.deepcopy(stable_diffusion())
    pipeline.set_progress_bar_config(disable=True)
    manager = EditManager(pipeline)
    manager.load_edit(random_edit(pipeline.unet, "e", 1, target="cross-attention-kv"))

    def draw():
        generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        with manager.per_prompt(["e", "__base__"]):
            return pipeline(
                ["a cat", "a dog"], num_inference_steps=STEPS, generator=generators, output_type="latent"
            ).images

    kept = draw()
    few = len(computed)
    monkeypatch.setenv("CAD_FAST_REMEMBERED_BYTES", "0")
    plain = draw()
    layers = (len(computed) - few) // STEPS
    assert few == 2 * layers and layers > 2
    assert torch.equal(kept, plain)


def test_joined_rows_are_the_same_tensor_while_their_parts_are() -> None:
    import inspect

    def forward(sample, encoder_hidden_states):
        return sample

    part = Part("denoiser", forward, inspect.signature(forward), 0)
    texts = [torch.randn(1, 3), torch.randn(2, 3)]

    def joined():
        calls = [
            PartCall(part, {"sample": torch.randn(len(text), 4), "encoder_hidden_states": text}, number)
            for number, text in enumerate(texts)
        ]
        return join(calls)

    first, second = joined(), joined()
    assert first["encoder_hidden_states"] is second["encoder_hidden_states"]
    assert first["sample"] is not second["sample"]
    first["encoder_hidden_states"].zero_()
    assert torch.equal(joined()["encoder_hidden_states"], torch.cat(texts))
    texts[0].add_(1)
    assert torch.equal(joined()["encoder_hidden_states"], torch.cat(texts))
