"""Passes that share their beginning: the same outputs as without, from less work, and what cannot be shared is not."""

import pytest
import torch
from torch import nn

import cad_fast
from cad_fast import Ablation, ComponentSpace
from cad_fast.diffusion.trees import map_arguments
from cad_fast.row_engine import beginnings
from cad_fast.row_engine.beginnings import Beginnings
from tests.row_truth import ablated_copy, copy_of, distance, some_call

WIDTH, FRAMES, VARIANTS = 8, 3, 4


class Net(nn.Module):
    """Rows [R, frames, width] through blocks, the way of the second being what the test is about."""

    def __init__(self, way="plain"):
        super().__init__()
        torch.manual_seed(6)
        self.first, self.second, self.third = Block(), WAYS[way](), Block()
        self.last = nn.Linear(WIDTH, WIDTH)
        self.text = nn.Linear(WIDTH, WIDTH)
        self.eval().requires_grad_(False)

    def forward(self, sample, text):
        x = self.first(sample)
        skip = x
        x = self.second(x)
        x = x[0] if isinstance(x, tuple) else x
        x = self.third(x.view(FRAMES, -1, WIDTH).transpose(0, 1) if x.ndim == 2 else x)
        return (self.last(x) + skip + self.text(text)[:, None],)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.rows = 0

    def forward(self, x):
        self.rows += len(x)
        return self.linear(x).relu() + x


class Several(Block):
    """Gives more than one tensor, and None."""

    def forward(self, x):
        x = super().forward(x)
        return x, [x.mean(), None], x


class FrameByFrame(Block):
    """Gives [frames * rows, width]: rows repeated are not its output repeated."""

    def forward(self, x):
        return super().forward(x).transpose(0, 1).reshape(-1, WIDTH)


class InPlace(Block):
    """Writes into its input, which others read too."""

    def forward(self, x):
        x.mul_(2.0)
        return super().forward(x)


class Twice(Block):
    """Calls its layer two times."""

    def forward(self, x):
        return super().forward(super().forward(x))


class Wrapping(Block):
    """Gives something that is no tensor, list or tuple."""

    def forward(self, x):
        return Result(super().forward(x))


class Result(tuple):
    """A tuple with one entry, of its own kind."""

    def __new__(cls, x):
        return super().__new__(cls, (x,))


class ByRows(Block):
    """Calls its layer once for each row."""

    def forward(self, x):
        return torch.cat([super(ByRows, self).forward(row) for row in x.split(1)])


class Shared(Block):
    """Gives one result for all rows."""

    def forward(self, x):
        super().forward(x)
        return (x, self.linear.bias.repeat(2, 1))


WAYS = {
    "plain": Block,
    "several": Several,
    "frame by frame": FrameByFrame,
    "in place": InPlace,
    "twice": Twice,
    "wrapping": Wrapping,
    "by rows": ByRows,
    "shared": Shared,
}


def counted(layer):
    """How many rows each call of a layer really computes from now on."""
    lengths, forward = [], layer.forward

    def counting(x):
        lengths.append(len(x))
        return forward(x)

    layer.forward = counting
    return lengths


def passes_of(net, layers, sharing, groups, *, rows=2):
    """The outputs of passes of ``VARIANTS`` ablations each, on the same rows."""
    space = ComponentSpace.of(net, "weight", layers)
    torch.manual_seed(1)
    sample, text = torch.randn(rows, FRAMES, WIDTH), torch.randn(rows, WIDTH)
    found = []
    for group in range(groups):
        ablations = [Ablation.random(space.n, 0.3, VARIANTS * group + v) for v in range(VARIANTS)]
        with torch.no_grad(), cad_fast.rows(net, ablations, space) as engine:

            def run(times):
                return net(sample.repeat(times, 1, 1), text.repeat(times, 1))[0]

            found.append(sharing.run(engine, run, form="one", key="these") if sharing else run(VARIANTS))
    return torch.stack(found)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layers", [["third.linear"], ["last"], ["second.linear", "last"], ["first.linear"]], ids=str)
def test_the_same_as_without_sharing(way, layers) -> None:
    if way in ("frame by frame", "by rows") and "second.linear" in layers:
        pytest.skip("no ablations of its own for each row can run there")
    net = Net(way)
    shared = passes_of(net, layers, Beginnings(net), 3)
    torch.testing.assert_close(shared, passes_of(Net(way), layers, None, 3))
    assert not any("forward" in module.__dict__ for module in net.modules())


def test_what_comes_before_runs_once_per_row() -> None:
    net, rows, groups = Net(), 2, 3
    passes_of(net, ["third.linear"], Beginnings(net), groups)
    trial = 2 * 6 + 2 * 6  # of the order of rows, before the denoiser's first pass: twice, of at most six rows
    seen = [block.rows for block in (net.first, net.second, net.third)]
    trace, beginning, whole = rows + 2 * rows, rows, groups * VARIANTS * rows
    assert seen[0] == seen[1] <= trial + trace + beginning
    assert seen[2] >= whole


@pytest.mark.parametrize("way", ["frame by frame", "in place", "wrapping", "by rows"])
def test_what_cannot_be_shared_runs_for_every_variant(way) -> None:
    net = Net(way)
    passes_of(net, ["third.linear"], Beginnings(net), 5)
    assert net.second.rows >= 5 * VARIANTS * 2


def test_the_text_is_read_once_per_row() -> None:
    net = Net()
    read = counted(net.text)
    sharing = Beginnings(net)
    passes_of(net, ["third.linear"], sharing, 1)
    read.clear()
    passes_of(net, ["third.linear"], sharing, 1)
    assert read == [2]


def test_hooks_of_users_act() -> None:
    net, without = Net(), Net()
    for each in (net, without):
        each.second.register_forward_hook(lambda module, args, output: output + 1)
        each.first.register_forward_pre_hook(lambda module, args: (args[0] * 3,))
    shared = passes_of(net, ["third.linear"], Beginnings(net), 2)
    torch.testing.assert_close(shared, passes_of(without, ["third.linear"], None, 2))
    assert not torch.allclose(shared, passes_of(Net(), ["third.linear"], None, 2))


@pytest.mark.parametrize("kept", [0, 2**28])
def test_beginnings_are_kept_while_they_fit(kept, monkeypatch) -> None:
    monkeypatch.setattr(beginnings, "MOST_KEPT", kept)
    net = Net()
    sharing = Beginnings(net)
    passes_of(net, ["third.linear"], sharing, 1)
    before = net.first.rows
    shared = passes_of(net, ["third.linear"], sharing, 2)
    assert net.first.rows - before == (0 if kept else 2 * 2)
    torch.testing.assert_close(shared, passes_of(Net(), ["third.linear"], None, 2))


def test_gradients_and_compiled_modules_share_nothing() -> None:
    net = Net()
    space = ComponentSpace.of(net, "weight", ["third.linear"])
    ablations = [Ablation.random(space.n, 0.3, v) for v in range(VARIANTS)]
    calls = []

    def run(times):
        calls.append(times)
        return net(torch.ones(2 * times, FRAMES, WIDTH), torch.ones(2 * times, WIDTH))[0]

    with cad_fast.rows(net, ablations, space) as engine:
        Beginnings(net).run(engine, run, form="one", key="these")
        assert calls == [VARIANTS]
        net.first.compile(backend="eager")
        with torch.no_grad():
            Beginnings(net).run(engine, run, form="one", key="these")
        assert calls == [VARIANTS, VARIANTS]


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "pixart"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_denoisers_of_diffusers(name, dtype) -> None:
    denoiser = copy_of(name, dtype)
    space = ComponentSpace.of(denoiser, "neuron", "feed-forward")
    entry = space.entries[-1]
    ablations = [Ablation.from_indices(space.n, [entry.offset + v]) for v in range(VARIANTS)]
    call, given = some_call(name, 2, dtype)
    inputs = {**call.inputs, **given}
    seen = counted(next(module for module in denoiser.modules() if isinstance(module, (nn.Linear, nn.Conv2d))))

    def run(times):
        rows = call.select_rows([0, 1] * times)
        repeated = map_arguments(
            inputs, lambda path, leaf: leaf[[0, 1] * times] if path in (call.row_paths or ()) else leaf
        )
        return rows.run(denoiser, **repeated)

    sharing = Beginnings(denoiser)
    with torch.no_grad(), cad_fast.rows(denoiser, ablations, space) as engine:
        sharing.run(engine, run, form="one", key="these")
        seen.clear()
        shared = sharing.run(engine, run, form="one", key="these")
        assert not seen, "the first layer's output was kept"
        plain = run(VARIANTS)
    assert seen
    assert distance(shared, plain) < {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for v, ablation in enumerate(ablations):
        alone = call.run(ablated_copy(denoiser, space, ablation), **inputs)
        assert distance(shared[2 * v : 2 * v + 2], alone) < {torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
