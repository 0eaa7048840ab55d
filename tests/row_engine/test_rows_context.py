"""The context of rows: what it leaves behind, who may enter, adapters beside it, torch.compile, and its errors."""

import copy
import threading

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

import cad_fast
from cad_fast.components.ablation import Ablation
from cad_fast.components.space import ComponentSpace
from tests.pipelines import stable_diffusion
from tests.row_truth import ablated_copy, copy_of, distance, some_call


def state_of(model: nn.Module) -> list[tuple[str, dict, list[Tensor]]]:
    return [
        (name, dict(module.__dict__), [p.detach().clone() for p in module.parameters(recurse=False)])
        for name, module in model.named_modules()
    ]


def weights_of(state) -> list[Tensor]:
    return [weight for _, _, weights in state for weight in weights]


def assert_untouched(model: nn.Module, before) -> None:
    for (name, entries, weights), (_, entries_before, weights_before) in zip(state_of(model), before, strict=True):
        assert entries.keys() == entries_before.keys(), name
        assert all(entries[key] is entries_before[key] for key in entries), name
        assert all(torch.equal(a, b) for a, b in zip(weights, weights_before, strict=True)), name


@pytest.mark.parametrize(
    ("kind", "gradients"), [("weight", None), ("weight", "scores"), ("filter", "gates"), ("head", None)]
)
def test_everything_is_as_before(kind: str, gradients) -> None:
    unet = copy_of("sd")
    space = ComponentSpace.of(unet, kind, "all")
    ablations = [Ablation.random(space.n, 0.3, seed=v) for v in range(2)]
    call, inputs = some_call("sd", 2)
    before = state_of(unet)
    with cad_fast.rows(unet, ablations, space, gradients=gradients) as engine:
        call.run(unet, **inputs)
        engine.set([None, ablations[0]])
        call.run(unet, **inputs)
        assert all(map(torch.equal, weights_of(state_of(unet)), weights_of(before)))
    assert_untouched(unet, before)
    with pytest.raises(KeyError, match="mine"), cad_fast.rows(unet, ablations, space):
        raise KeyError("mine")
    assert_untouched(unet, before)
    plain = call.run(unet, **inputs)
    assert torch.equal(plain, call.run(copy_of("sd"), **inputs))


def test_only_modules_with_ablations_are_overridden() -> None:
    unet = copy_of("sd")
    space = ComponentSpace.of(unet, "weight", "feed-forward")
    first, second = space.entries[0], space.entries[1]

    def overridden() -> set[str]:
        return {name for name, module in unet.named_modules() if "forward" in module.__dict__}

    with cad_fast.rows(unet, [Ablation.from_indices(space.n, [0]), None], space) as engine:
        assert overridden() == {first.module}
        engine.set([None, Ablation.from_indices(space.n, [second.offset])])
        assert overridden() == {second.module}
        engine.set([None, None])
        assert overridden() == set() and engine.nbytes == 0
    assert "forward" not in nn.Linear.__dict__ or nn.Linear.forward.__qualname__ == "Linear.forward"


@pytest.mark.parametrize("share", [0.3, 0.001])
def test_memory_is_reported(share: float) -> None:
    layer = nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 48))
    space = ComponentSpace.of(layer, "weight", "all")
    ablations = [Ablation.random(space.n, share, seed=v) for v in range(4)]
    with cad_fast.rows(layer, ablations, space) as engine:
        if share > 0.02:
            assert engine.nbytes == 4 * 4 * (48 * 2 + 48 * 2)
        else:
            used = len({int(i) // 3072 for a in ablations for i in a.indices})
            assert engine.nbytes == 12 * sum(map(len, ablations)) + used * 5 * 8
    assert engine.nbytes == 0


def test_a_denoiser_in_use_is_refused() -> None:
    unet, other = copy_of("sd"), copy_of("sd")
    space = ComponentSpace.of(unet)
    ablation = Ablation.random(space.n, 0.3, seed=1)
    refused = []

    def enter_elsewhere() -> None:
        try:
            with cad_fast.rows(unet, [ablation], space):
                refused.append(False)
        except RuntimeError as error:
            refused.append("UNet2DConditionModel already runs under ablations" in str(error))

    engine = cad_fast.rows(unet, [ablation], space)
    before = state_of(unet)
    with engine:
        for again in (engine, cad_fast.rows(unet, [None], ComponentSpace.of(unet, "filter"))):
            with pytest.raises(RuntimeError, match="already runs under ablations"), again:
                pass
        within = ComponentSpace.of(unet.mid_block)
        with (
            pytest.raises(RuntimeError, match="already runs under ablations"),
            cad_fast.rows(unet.mid_block, [None], within),
        ):
            pass
        thread = threading.Thread(target=enter_elsewhere)
        thread.start()
        thread.join()
        with cad_fast.rows(other, [ablation], space):
            pass
    assert refused == [True]
    assert_untouched(unet, before)
    with engine:  # and again once it is free
        pass


def test_one_of_many_threads_gets_in() -> None:
    layer = nn.Sequential(nn.Linear(8, 8))
    space = ComponentSpace.of(layer, "weight", "all")
    entered, ready, done = [], threading.Barrier(8), threading.Barrier(8)

    def enter() -> None:
        ready.wait()
        try:
            with cad_fast.rows(layer, [Ablation.from_indices(64, [1])], space):
                entered.append(True)
                done.wait()
        except RuntimeError:
            done.wait()

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert entered == [True]
    assert "forward" not in layer[0].__dict__


def test_a_pipeline_may_be_given() -> None:
    pipeline = stable_diffusion()
    space = ComponentSpace.of(pipeline)
    call, inputs = some_call("sd", 1)
    ablation = Ablation.random(space.n, 0.3, seed=1)
    with torch.no_grad(), cad_fast.rows(pipeline, [ablation], space):
        output = call.run(pipeline.unet, **inputs)
    assert distance(output, call.run(ablated_copy(pipeline.unet, space, ablation), **inputs)) < 1e-5


@pytest.mark.parametrize(("kind", "target"), [("weight", "attention"), ("head", "attention"), ("weight", "all")])
def test_lora_beside_keeps_working(kind: str, target: str) -> None:
    unet = copy_of("sd")
    space = ComponentSpace.of(unet, kind, target)
    config = LoraConfig(r=2, target_modules=["to_k", "to_out.0", "conv1"], init_lora_weights=False)
    inject_adapter_in_model(config, unet).requires_grad_(False)
    ablations = [Ablation.random(space.n, 0.3, seed=1), None, Ablation.random(space.n, 0.001, seed=2)]
    call, inputs = some_call("sd", 3)
    with torch.no_grad(), cad_fast.rows(unet, ablations, space):
        output = call.run(unet, **inputs)
    for v, ablation in enumerate(ablations):
        expected = call.run(ablated_copy(unet, space, ablation), **inputs)[v : v + 1]
        assert distance(output[v : v + 1], expected) < 1e-5


def test_a_copy_made_inside_runs_on_its_own_weights() -> None:
    layer = nn.Sequential(nn.Linear(8, 8))
    space = ComponentSpace.of(layer, "weight", "all")
    x = torch.randn(2, 8)
    with torch.no_grad(), cad_fast.rows(layer, [Ablation.from_indices(64, range(64)), None], space):
        twin = copy.deepcopy(layer)
        twin[0].bias.add_(1)
        torch.testing.assert_close(twin(x)[0], layer[0].bias + 1)
        torch.testing.assert_close(layer(x)[0], layer[0].bias)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.linear = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x).relu().flatten(2).transpose(1, 2))


@pytest.mark.parametrize(
    ("kind", "share"), [("weight", 0.3), ("weight", 0.015), ("filter", 0.5)], ids=["masked", "edited", "gated"]
)
def test_compile(kind: str, share: float) -> None:
    """What was compiled outside the context does not serve inside, nor the reverse."""
    model = Small()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    space = ComponentSpace.of(model, kind, "all")
    sets = [[Ablation.random(space.n, share, seed=10 * s + v) | Ablation.from_indices(space.n, [0, space.n - 1])
             for v in range(2)] for s in range(2)]  # fmt: skip
    x = torch.randn(4, 3, 6, 5)
    with torch.no_grad():
        plain = model(x)
        torch.testing.assert_close(compiled(x), plain)
        with cad_fast.rows(compiled, sets[0], space) as engine:
            for ablations in sets:
                engine.set(ablations)
                torch.testing.assert_close(compiled(x), model(x))
                assert not torch.allclose(compiled(x), plain)
        torch.testing.assert_close(compiled(x), plain)


class OwnForward(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def layer_and_space(kind: str = "weight"):
    layer = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Linear(8, 6))
    return layer, ComponentSpace.of(layer, kind, "all")


LAYER, SPACE = layer_and_space()
FILTERS = ComponentSpace.of(LAYER, "filter", "all")


def hooked() -> nn.Module:
    layer, _ = layer_and_space()
    layer[1].forward = lambda x: x
    return layer


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: cad_fast.rows(LAYER, [], SPACE), ValueError, "no ablations were given"),
        (lambda: cad_fast.rows(LAYER, [None, 3], SPACE), TypeError, r"ablations\[1\] is a int, expected an Ablation"),
        (
            lambda: cad_fast.rows(LAYER, [None, Ablation.random(9, 0.1, 0)], SPACE),
            ValueError,
            rf"ablations\[1\] is of 9 components, the space has {SPACE.n}",
        ),
        (lambda: cad_fast.rows(LAYER[:1], [None], SPACE), ValueError, "the denoiser has no module '1'"),
        (
            lambda: cad_fast.rows(nn.Sequential(nn.Conv2d(2, 4, 1), nn.Linear(8, 7)), [None], SPACE),
            ValueError,
            r"1.weight has shape \[7, 8\], expected \[6, 8\]",
        ),
        (lambda: cad_fast.rows(3, [None], SPACE), TypeError, "no denoiser found"),
        (
            lambda: cad_fast.rows(LAYER, [None], SPACE, gradients="gates"),
            ValueError,
            "components of kind 'weight' have no gates: use gradients='scores'",
        ),
        (lambda: cad_fast.rows(LAYER, [None], FILTERS, gradients="scores"), ValueError, "use gradients='gates'"),
        (lambda: cad_fast.rows(LAYER, [None], SPACE, gradients=True), ValueError, "gradients is True, expected None"),
        (
            lambda: cad_fast.rows(layer_and_space()[0].double(), [None], SPACE).__enter__(),
            TypeError,
            "0.weight is torch.float64, expected one of torch.float32, torch.bfloat16, torch.float16",
        ),
        (
            lambda: cad_fast.rows(nn.Sequential(LAYER[0], OwnForward(8, 6)), [None], SPACE).__enter__(),
            TypeError,
            "1 is a OwnForward, which does not run as a plain linear",
        ),
        (
            lambda: cad_fast.rows(layer_and_space()[0].to("meta"), [None], SPACE).__enter__(),
            ValueError,
            r"0.weight is offloaded \(meta device\)",
        ),
        (
            lambda: cad_fast.rows(hooked(), [None], SPACE).__enter__(),
            ValueError,
            "1 has a forward of its own already",
        ),
    ],
)
def test_errors(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
    with cad_fast.rows(LAYER, [None], SPACE):  # a refusal claims nothing
        pass


def test_inputs_without_rows() -> None:
    for kind in ("weight", "filter"):
        layer, space = layer_and_space(kind)
        with cad_fast.rows(layer, [~Ablation.from_indices(space.n, []), None], space):
            with pytest.raises(ValueError, match=r"0 was called with .* \[2, 3, 3\], expected at least 4 dimensions"):
                layer[0](torch.randn(2, 3, 3))
    with cad_fast.rows(LAYER, [~Ablation.from_indices(SPACE.n, []), None], SPACE):
        with pytest.raises(ValueError, match=r"1 was called with .* \[8\], expected at least 2 dimensions"):
            LAYER[1](torch.randn(8))


def test_fused_projections_are_refused() -> None:
    unet = copy_of("sd")
    unet.fuse_qkv_projections()
    with pytest.raises(ValueError, match=r"to_q is not in use, its attention runs fused projections"):
        with cad_fast.rows(unet, [None], ComponentSpace.of(unet, "weight", "attention")):
            pass
    with cad_fast.rows(unet, [None], ComponentSpace.of(unet, "weight", "feed-forward")):
        pass


@pytest.mark.parametrize("kind", ["weight", "filter"])
def test_rows_that_the_variants_do_not_divide(kind: str) -> None:
    layer, space = layer_and_space(kind)
    with cad_fast.rows(layer, [Ablation.random(space.n, 0.5, seed=v) for v in range(3)], space) as engine:
        with pytest.raises(ValueError, match=r"0 was called with 4 rows, which is no multiple of the 3 variants"):
            layer[0](torch.randn(4, 2, 3, 3))
        with pytest.raises(ValueError, match="2 ablations were given, expected 3 as before"):
            engine.set([None, None])
        with pytest.raises(ValueError, match=r"ablations\[2\] is of 1 components"):
            engine.set([None, None, Ablation.from_indices(1, [])])
        assert layer[0](torch.randn(3, 2, 3, 3)).shape == (3, 4, 3, 3)
