"""Layers that are called by keyword, left out of a call, or stood for by adapters of PEFT."""

import contextlib
import copy

import peft
import pytest
import torch
from torch import nn

import cad_fast
from cad_fast.attribution.gradients.sums import gated
from cad_fast.components.ablation import Ablation
from cad_fast.components.space import ComponentSpace
from cad_fast.edits import Edit, RowEdits
from tests.edits.rows.test_row_edits import random_edit
from tests.row_truth import copy_of, distance, some_call


class Block(nn.Module):
    """Calls its layers by keyword, or reads a weight, or leaves a layer out, as it is told."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(8, 8)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.way = "call"

    def forward(self, x):
        if self.way == "skip":
            return x
        weight, bias = self.proj.weight, self.proj.bias
        y = nn.functional.linear(x, weight, bias) if self.way == "read" else self.proj(input=x)
        return self.conv(input=y)


class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()
        self.skips = False

    def forward(self, sample, timestep):
        return sample if self.skips else self.block(sample) + timestep


@pytest.fixture
def denoiser():
    torch.manual_seed(3)
    return Denoiser().eval().requires_grad_(False)


SAMPLE = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def edit_of(model, name="e", **options):
    return random_edit(model, name, 1, fraction=0.5, **options)


def test_input_by_keyword(denoiser) -> None:
    plain, edit = denoiser(SAMPLE, 0.0), edit_of(denoiser)
    chosen = Ablation.random(edit.space.n, 0.5, 1)  # as edit_of draws them
    twin = copy.deepcopy(denoiser)
    edit.fuse(twin)
    runner = RowEdits(denoiser)
    runner.add(edit)
    assert torch.equal(denoiser(SAMPLE, 0.0), plain)
    with runner.rows([(("e",),), ()]):
        output = denoiser(SAMPLE, 0.0)
    assert distance(output[:1], twin(SAMPLE, 0.0)[:1]) < 1e-5 and distance(output[1:], plain[1:]) < 1e-5
    runner.close()
    space = edit.space
    with cad_fast.rows(denoiser, [chosen, None], space):
        assert distance(denoiser(SAMPLE, 0.0), output) < 1e-5


@pytest.mark.parametrize("kind", ["neuron", "filter"])
def test_gates_of_layers_called_by_keyword(kind) -> None:
    torch.manual_seed(5)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([nn.ModuleList([nn.Linear(8, 12), nn.Linear(12, 8)])])
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, sample, timestep):
            widen, narrow = self.blocks[0]
            return self.conv(input=narrow(input=widen(input=sample)))

    net = Net()
    space = ComponentSpace.of(net, kind, "all")
    entries = {entry.module: entry for entry in space}
    with gated(space.modules(net), entries) as gates:
        with torch.no_grad():
            for gate in gates.values():
                gate[0] = 0.0
        output = net(SAMPLE, 0.0)
    with cad_fast.rows(net, [Ablation.from_indices(space.n, [0])], space):
        assert distance(output, net(SAMPLE, 0.0)) < 1e-5


def test_a_weight_that_is_read_instead(denoiser) -> None:
    runner = RowEdits(denoiser)
    runner.add(edit_of(denoiser))
    plain = denoiser(SAMPLE, 0.0)
    for rows in ([(("e",),)] * 2, [(("e",),), ()]):
        with runner.rows(rows):
            edited = denoiser(SAMPLE, 0.0)
            denoiser.block.way = "read"
            with pytest.raises(RuntimeError, match=r"edits of block\.proj did not act: block ran without calling it"):
                denoiser(SAMPLE, 0.0)
            denoiser.block.way = "call"
            assert torch.equal(denoiser(SAMPLE, 0.0), edited)
    assert torch.equal(denoiser(SAMPLE, 0.0), plain)
    with runner.rows([(("e",),)] * 2):  # what does not run at all needs no edit
        denoiser.block.way = "call"
        denoiser.skips = True
        assert torch.equal(denoiser(SAMPLE, 0.0), SAMPLE)
    runner.close()
    assert not denoiser.block._forward_pre_hooks and not denoiser._forward_hooks


@pytest.mark.parametrize("variants", [1, 2])
def test_a_weight_that_is_read_instead_under_ablations(denoiser, variants) -> None:
    space = ComponentSpace.of(denoiser, "weight", "all")
    ablations = [Ablation.random(space.n, 0.5, seed) for seed in range(variants)]
    denoiser.block.way = "read"
    with (
        cad_fast.rows(denoiser, ablations, space),
        pytest.raises(RuntimeError, match=r"ablations of block.proj did not act: block ran without calling it"),
    ):
        denoiser(SAMPLE, 0.0)
    assert not denoiser.block._forward_pre_hooks and not denoiser._forward_hooks
    denoiser.skips = True  # then the block does not run, and the ablation has nothing to act on
    with cad_fast.rows(denoiser, ablations, space):
        assert torch.equal(denoiser(SAMPLE, 0.0), SAMPLE)
    denoiser.skips, denoiser.block.way = False, "call"
    with cad_fast.rows(denoiser, ablations, space):
        assert distance(denoiser(SAMPLE, 0.0), SAMPLE) > 0.1


def test_a_block_that_is_switched_off_leaves_its_layers_out(denoiser) -> None:
    """As GLIGEN's fusers, which let their input through for the later steps."""
    space = ComponentSpace.of(denoiser, "weight", "all")
    runner = RowEdits(denoiser)
    runner.add(edit_of(denoiser))
    denoiser.block.way = "skip"
    for enabled in (True, False):
        denoiser.block.enabled = enabled
        expected = pytest.raises(RuntimeError, match="did not act") if enabled else contextlib.nullcontext()
        with expected, runner.rows([(("e",),)] * 2):
            assert torch.equal(denoiser(SAMPLE, 0.0), SAMPLE)
        expected = pytest.raises(RuntimeError, match="did not act") if enabled else contextlib.nullcontext()
        with expected, cad_fast.rows(denoiser, [Ablation.random(space.n, 0.5, 1)], space):
            assert torch.equal(denoiser(SAMPLE, 0.0), SAMPLE)


def test_a_layer_that_was_replaced(denoiser) -> None:
    runner = RowEdits(denoiser)
    runner.add(edit_of(denoiser))
    denoiser.block.proj = nn.Linear(8, 8)
    with runner.rows([(("e",),)] * 2), pytest.raises(ValueError, match="no longer the model"):
        denoiser(SAMPLE, 0.0)


NAMES = ["to_k", "to_v"]
# Adapters that call their layer, and those that take its weight.
CALLING = {
    "LoRA": peft.LoraConfig(r=2, target_modules=NAMES, init_lora_weights=False),
    "LoHa": peft.LoHaConfig(r=2, target_modules=NAMES, init_weights=False),
    "LoKr": peft.LoKrConfig(r=2, target_modules=NAMES, init_weights=False),
    "OFT": peft.OFTConfig(r=2, oft_block_size=0, target_modules=NAMES, init_weights=False),
    "IA3": peft.IA3Config(target_modules=NAMES, feedforward_modules=[], init_ia3_weights=False),
}
READING = {
    "DoRA": peft.LoraConfig(r=2, target_modules=NAMES, use_dora=True, init_lora_weights=False),
    "SHiRA": peft.ShiraConfig(r=2, target_modules=NAMES, init_weights=False),
    "HRA": peft.HRAConfig(r=2, target_modules=NAMES, init_weights=False),
}


def put_into_base(unet, edit: Edit) -> None:
    for name, places in edit.weight_indices().items():
        layer = unet.get_submodule(name)
        getattr(layer, "base_layer", layer).weight.data.view(-1)[places] = 0


@pytest.mark.parametrize("kind", [*CALLING, *READING])
@pytest.mark.parametrize("early", [True, False])
def test_beside_adapters(kind, early) -> None:
    unet = copy_of("sd")
    edit = random_edit(unet, "e", 1, target="cross-attention-kv", fraction=0.5)
    runner = RowEdits(unet)
    if early:
        runner.add(edit)
    torch.manual_seed(2)
    unet.add_adapter((CALLING | READING)[kind], "x")
    if not early:
        runner.add(edit)
    call, inputs = some_call("sd", 2)
    with torch.no_grad():
        plain = call.run(unet, **inputs)
        twin = copy.deepcopy(unet)
        put_into_base(twin, edit)
        expected = call.run(twin, **inputs)
        assert distance(expected, plain) > 1e-3
        with runner.rows([(("e",),), ()]):
            if kind in CALLING:
                output = call.run(unet, **inputs)
                assert distance(output[:1], expected[:1]) < 1e-4 and distance(output[1:], plain[1:]) < 1e-4
                return
            with pytest.raises(ValueError, match=r"attn2\.to_k has an adapter \(.*that reads its weight"):
                call.run(unet, **inputs)
            unet.disable_adapters()
            call.run(unet, **inputs)
            unet.enable_adapters()
        space = edit.space
        with pytest.raises(ValueError, match="that reads its weight"):
            cad_fast.rows(unet, [Ablation.random(space.n, 0.1, 1)], space).__enter__()


def test_fused_lora_under_rows() -> None:
    unet = copy_of("sd")
    runner = RowEdits(unet)
    runner.add(random_edit(unet, "e", 1, target="cross-attention-kv"))
    unet.add_adapter(CALLING["LoRA"], "x")
    call, inputs = some_call("sd", 1)
    with torch.no_grad(), runner.rows([(("e",),)]):
        expected = call.run(unet, **inputs)
        unet.fuse_lora()
        with pytest.raises(ValueError, match=r"to_k\.weight has the adapter x fused into it.*unfuse_lora"):
            call.run(unet, **inputs)
        unet.unfuse_lora()
        assert distance(call.run(unet, **inputs), expected) < 1e-5
