"""Denoisers whose rows do not stay rows, and what may run on them all the same."""

import copy
import gc
import weakref

import diffusers
import pytest
import torch
from torch import nn

import cad_fast
from cad_fast.components.ablation import Ablation
from cad_fast.edits import RowEdits
from cad_fast.row_engine.row_order import RowsMixed, row_order
from tests.edits.rows.test_row_edits import random_edit
from tests.pipelines import PIPELINES
from tests.row_truth import copy_of, distance, some_call

WIDTH, FRAMES = 8, 3


class Net(nn.Module):
    """Rows [R, frames, width] through one linear, which sees them in the way that the test is about."""

    def __init__(self, way="rows"):
        super().__init__()
        torch.manual_seed(4)
        self.first, self.linear = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.way = way
        self.runs = 0
        self.eval().requires_grad_(False)

    def forward(self, sample, timestep, text=None):
        self.runs += 1
        x = self.first(sample)
        if self.way == "frames by row":
            x = self.linear(x.flatten(0, 1)).view_as(x) + text.view_as(x)
        elif self.way == "frame by frame":
            x = self.linear(x.transpose(0, 1).flatten(0, 1)).view(FRAMES, len(x), WIDTH).transpose(0, 1)
        elif self.way == "experts":
            tokens = x.flatten(0, 1)
            chosen = (tokens[:, 0] > 0).nonzero().flatten()
            x = tokens.index_copy(0, chosen, self.linear(tokens[chosen])).view_as(x)
        elif self.way == "halves":
            one, other = x.chunk(2)
            x = torch.cat([self.linear(one), 2 * self.linear(other)])
        elif self.way == "mean":
            x = self.linear(x) + x.mean(0, keepdim=True)
        else:
            x = self.linear(x)
        return (x * timestep,)


STAYING = ["rows", "frames by row"]
MIXING = {
    "frame by frame": r"linear was called with the denoiser's rows in another order, such as frame by frame",
    "experts": r"linear was called with .* rows(, which is no multiple of| in another order)",
    "halves": r"a row of Net depends on the others or on its place",
    "mean": r"a row of Net depends on the others or on its place",
}


def inputs(rows=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    sample, text = torch.randn(2, rows, FRAMES, WIDTH, generator=generator)
    return {"sample": sample, "timestep": 0.5, "text": text.flatten(0, 1)[:, None]}


def edited(net):
    edit = random_edit(net, "e", 1, target=["linear"], fraction=0.5)
    runner, twin = RowEdits(net), copy.deepcopy(net)
    edit.fuse(twin)
    runner.add(edit)
    return runner, twin


@pytest.mark.parametrize("way", STAYING)
def test_rows_that_stay_rows(way) -> None:
    net = Net(way)
    runner, twin = edited(net)
    with runner.rows([(("e",),), (), (), (("e",),)]):
        output = net(**inputs())[0]
        runs = net.runs
        net(**inputs(seed=2))
        assert net.runs == runs + 1  # tried once
    assert distance(output[[0, 3]], twin(**inputs())[0][[0, 3]]) < 1e-5
    assert distance(output[[1, 2]], net(**inputs())[0][[1, 2]]) < 1e-5


@pytest.mark.parametrize("way", MIXING)
def test_rows_that_do_not(way) -> None:
    net = Net(way)
    runner, twin = edited(net)
    for seed in range(8):  # some of which give the expert a multiple of the rows
        given = inputs(seed=seed)
        with runner.rows([(("e",),), (), (), ()]), pytest.raises(RowsMixed, match=MIXING[way]):
            net(**given)
        with runner.rows([(("e",),)] * 4):  # all alike need no rows
            assert distance(net(**given)[0], twin(**given)[0]) < 1e-5
    runner.close()
    space = random_edit(net, "e", 1, target=["linear"]).space
    ablations = [Ablation.random(space.n, 0.5, v) for v in range(2)]
    with cad_fast.rows(net, ablations, space), pytest.raises(RowsMixed, match="an ablation of its own for each"):
        net(**inputs())
    with cad_fast.rows(net, ablations[:1], space):
        net(**inputs())
    assert way in ("halves", "mean") or _first_is_free(net)


def _first_is_free(net) -> bool:
    """A layer before the mixing is fine."""
    runner = RowEdits(net)
    runner.add(random_edit(net, "f", 2, target=["first"]))
    with runner.rows([(("f",),), (), (), ()]):
        net(**inputs())
    runner.close()
    return True


@pytest.mark.parametrize("way", ["masked", "overflowing"])
def test_what_is_not_finite_hides_no_mixing(way) -> None:
    """Masks of minus infinity get no noise, and samples that overflow with noise are tried without it."""

    class Sharing(Net):
        def forward(self, sample, timestep, mask):
            x = (sample @ sample.transpose(1, 2) + mask).softmax(-1) @ sample
            x = self.linear(x) * timestep
            x = x + x.mean(0, keepdim=True)
            return (x / (sample.abs().amax() <= 1),)  # infinite beyond 1

    net = Sharing()
    runner, _ = edited(net)
    sample, mask = inputs()["sample"], torch.zeros(4, FRAMES, FRAMES)
    sample = sample / sample.abs().amax()
    if way == "masked":
        sample, mask[:, :, -1] = sample / 10, float("-inf")
    with runner.rows([(("e",),), (), (), ()]), pytest.raises(RowsMixed, match="a row of Sharing depends"):
        net(sample, 0.5, mask)


def test_an_expert_that_no_token_chose() -> None:
    net = Net("experts")
    net.first.bias.data[0] = -100.0
    runner, twin = edited(net)
    with runner.rows([(("e",),)] * 4):
        assert torch.equal(net(**inputs())[0], twin(**inputs())[0])


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_diffusers_denoisers_keep_rows_and_notice_nothing(name, dtype) -> None:
    denoiser = copy_of(name, dtype)
    call, given = some_call(name, 4, dtype)
    layers = {n: m for n, m in denoiser.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    calls = []
    denoiser.register_forward_hook(lambda *_: calls.append(1))
    state = torch.random.get_rng_state()
    order = row_order(denoiser, (), {**call.inputs, **given}, 4, layers)
    assert order.mixed is None and not order.layers
    assert not calls and torch.equal(torch.random.get_rng_state(), state)
    assert not any(layer._forward_pre_hooks for layer in layers.values())


def test_a_processor_that_cuts_the_batch() -> None:
    """Perturbed attention takes the last third of the rows for perturbed ones; found though it comes later."""
    unet = copy_of("sd")
    runner = RowEdits(unet)
    runner.add(random_edit(unet, "e", 1))
    call, given = some_call("sd", 6)
    with torch.no_grad(), runner.rows([(("e",),)] * 5 + [()]):
        call.run(unet, **given)
        attention = unet.mid_block.attentions[0].transformer_blocks[0].attn1
        attention.processor = diffusers.models.attention_processor.PAGCFGIdentitySelfAttnProcessor2_0()
        with pytest.raises(RowsMixed, match="a row of UNet2DConditionModel depends on the others or on its place"):
            call.run(unet, **given)


class Averaging(Net):
    """Takes the place of ``Net``: a token merger, for instance, gives blocks another class."""

    def forward(self, sample, timestep, text=None):
        (x,) = super().forward(sample, timestep, text)
        return (x + x.mean(0, keepdim=True),)


def averaged(module, args, output):
    """A hook that lets rows depend on each other."""
    return (output[0] + output[0].mean(0, keepdim=True),)


class Around(nn.Module):
    """A denoiser with one block."""

    def __init__(self):
        super().__init__()
        self.block = Net()

    def forward(self, sample, timestep):
        return self.block(sample, timestep)


PATCHES = {
    "class": lambda net: setattr(net.block, "__class__", Averaging),
    "forward": lambda net: setattr(
        net.block, "forward", lambda *given: averaged(None, (), Net.forward(net.block, *given))
    ),
    "method": lambda net: setattr(net.block, "forward", Averaging().forward),
    "hook": lambda net: net.block.register_forward_hook(averaged),
    "whole": lambda net: setattr(net, "forward", Averaging().forward),
    "module": lambda net: setattr(net, "block", Averaging()),
}


@pytest.mark.parametrize("patch", PATCHES)
def test_what_is_patched_after_the_trial_is_tried_again(patch) -> None:
    net = Around()
    layers = {"block.linear": net.block.linear}
    given = (torch.randn(4, FRAMES, WIDTH), 0.5)
    assert row_order(net, given, {}, 4, layers).mixed is None
    runs = net.block.runs
    assert row_order(net, given, {}, 4, layers).mixed is None
    assert net.block.runs == runs, "it was tried twice though nothing had changed"
    PATCHES[patch](net)
    assert "a row of Around depends on the others" in str(row_order(net, given, {}, 4, {}).mixed)
    if patch not in ("whole", "module"):
        assert row_order(net, given, {}, 4, layers).mixed is not None


def test_a_call_that_shows_nothing_is_not_remembered() -> None:
    net = Net("mean")
    bad = torch.full((4, FRAMES, WIDTH), torch.nan)
    assert row_order(net, (bad, 1.0), {}, 4, {}).mixed is None
    assert row_order(net, (torch.randn_like(bad), 1.0), {}, 4, {}).mixed is not None


def test_what_is_known_goes_with_the_denoiser() -> None:
    def patched():
        net = Around()
        net.forward = lambda *given: Around.forward(net, *given)  # what holds the denoiser itself
        return net

    net = patched()
    row_order(net, (torch.randn(4, FRAMES, WIDTH), 0.5), {}, 4, {})
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None


def test_a_cache_decides_for_all_rows() -> None:
    transformer = copy_of("flux")
    transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
    runner = RowEdits(transformer)
    runner.add(random_edit(transformer, "e", 1))
    call, given = some_call("flux", 2)
    with torch.no_grad(), transformer.cache_context("cond"):
        with runner.rows([(("e",),), ()]), pytest.raises(RowsMixed, match=r"cache \(FirstBlockCacheConfig\) decides"):
            call.run(transformer, **given)
        with runner.rows([(("e",),)] * 2):
            call.run(transformer, **given)
