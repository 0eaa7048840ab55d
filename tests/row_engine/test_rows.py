"""Rows under their own ablations, against each variant run alone on a copy of the denoiser with its weights changed."""

import pytest
import torch
from torch import Tensor, nn

import cad_fast
from cad_fast.components.ablation import Ablation
from cad_fast.components.space import ComponentSpace
from tests.rounding import network_bound
from tests.row_truth import copy_of, distance, recorded_call, some_call, variant_outputs

FP32_TOLERANCE = 1e-5  # relative distance of outputs; two orders of summation of the same fp32 numbers
SPACES = [
    ("weight", "feed-forward"),
    ("weight", "cross-attention-kv"),
    ("weight", "attention"),
    ("weight", "convolution"),
    ("weight", "all"),
    ("neuron", "feed-forward"),
    ("head", "attention"),
    ("filter", "convolution"),
]


def some_ablations(n: int, factor: float = 0.0) -> list[Ablation | None]:
    """Every form, none, few and many components; the None last but one, so that it is not the first row."""
    few = torch.randperm(n)[: max(1, n // 300)].sort().values
    return [
        Ablation.random(n, 0.3, seed=1, factor=factor),
        Ablation.from_indices(n, few, factor),
        None,
        Ablation.seeded(n, 0.1, seed=2, variant=5, factor=factor),
    ]


def run(denoiser: nn.Module, space: ComponentSpace, ablations, name: str, inputs, **more) -> Tensor:
    call = recorded_call(name)
    with torch.no_grad(), cad_fast.rows(denoiser, ablations, space, **more):
        return call.run(denoiser, **inputs)


@pytest.mark.parametrize("per_variant", [1, 3])
@pytest.mark.parametrize(("kind", "target"), SPACES)
def test_unet(kind: str, target: str, per_variant: int) -> None:
    unet = copy_of("sd")
    space = ComponentSpace.of(unet, kind, target)
    ablations = some_ablations(space.n)
    _, inputs = some_call("sd", per_variant * len(ablations))
    expected = variant_outputs(unet, space, ablations, "sd", inputs)
    assert distance(run(unet, space, ablations, "sd", inputs), expected) < FP32_TOLERANCE
    plain = recorded_call("sd").run(unet, **inputs)
    assert distance(plain[:per_variant], expected[:per_variant]) > 100 * FP32_TOLERANCE


ARCHITECTURES = [
    ("sdxl", "weight", "feed-forward"),
    ("sdxl", "filter", "convolution"),
    ("sd3", "weight", "all"),
    ("sd3", "head", "attention"),
    ("flux", "weight", "all"),
    ("flux", "neuron", "feed-forward"),
    ("pixart", "weight", "all"),
    ("pixart", "neuron", "feed-forward"),
    ("pixart", "head", "attention"),
]


@pytest.mark.parametrize(("name", "kind", "target"), ARCHITECTURES)
def test_other_architectures(name: str, kind: str, target: str) -> None:
    denoiser = copy_of(name)
    space = ComponentSpace.of(denoiser, kind, target)
    ablations = some_ablations(space.n)
    _, inputs = some_call(name, 2 * len(ablations))
    expected = variant_outputs(denoiser, space, ablations, name, inputs)
    assert distance(run(denoiser, space, ablations, name, inputs), expected) < FP32_TOLERANCE


@pytest.mark.parametrize("factor", [0.5, -1.0, 2.0])
@pytest.mark.parametrize(("kind", "target"), [SPACES[0], *SPACES[3:]])
def test_factors(kind: str, target: str, factor: float) -> None:
    unet = copy_of("sd")
    space = ComponentSpace.of(unet, kind, target)
    ablations = some_ablations(space.n, factor)
    ablations[0] = ablations[0].with_factor(0.25)  # variants with different factors in one call
    _, inputs = some_call("sd", len(ablations))
    expected = variant_outputs(unet, space, ablations, "sd", inputs)
    assert distance(run(unet, space, ablations, "sd", inputs), expected) < FP32_TOLERANCE


def mixed_factors(ablation: Ablation) -> Tensor:
    factors = torch.rand(len(ablation), dtype=torch.float64).round(decimals=1)
    factors[:2] = torch.tensor([0.0, 1.0])
    return factors


@pytest.mark.parametrize(("kind", "target"), [SPACES[0], *SPACES[3:]])
def test_one_factor_per_component(kind: str, target: str) -> None:
    unet = copy_of("sd")
    space = ComponentSpace.of(unet, kind, target)
    ablations = some_ablations(space.n)
    ablations[0] = ablations[0].with_factor(mixed_factors(ablations[0]))
    _, inputs = some_call("sd", len(ablations))
    expected = variant_outputs(unet, space, ablations, "sd", inputs)
    assert distance(run(unet, space, ablations, "sd", inputs), expected) < FP32_TOLERANCE


@pytest.mark.filterwarnings("ignore:the native kernels compute float32")
@pytest.mark.parametrize(
    ("dtype", "kind", "target"),
    [(torch.bfloat16, *space) for space in SPACES] + [(torch.float16, *SPACES[0]), (torch.float16, *SPACES[3])],
)
def test_shorter_floats(dtype: torch.dtype, kind: str, target: str) -> None:
    """As far from the fp32 truth as the roundings of all layers explain."""
    unet = copy_of("sd", dtype)
    wide = copy_of("sd", dtype).float()
    space = ComponentSpace.of(unet, kind, target)
    ablations = some_ablations(space.n, 0.5)
    _, inputs = some_call("sd", len(ablations), dtype)
    expected = variant_outputs(wide, space, ablations, "sd", some_wide(inputs))
    output = run(unet, space, ablations, "sd", inputs)
    assert output.dtype == dtype
    assert distance(output, expected) < network_bound(unet, dtype)


def some_wide(inputs):
    return {
        key: value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
        for key, value in inputs.items()
    }


@pytest.mark.parametrize(("kind", "target"), [("weight", "all"), ("head", "attention"), ("filter", "convolution")])
def test_a_variant_is_independent_of_its_batch_mates(kind: str, target: str) -> None:
    unet = copy_of("sd")
    space = ComponentSpace.of(unet, kind, target)
    ablations = [Ablation.seeded(space.n, 0.1, seed=3, variant=v) for v in range(16)]
    call, inputs = some_call("sd", 16)
    together = run(unet, space, ablations, "sd", inputs)
    for variant in (0, 7, 15):
        sample = {call.sample_key: inputs[call.sample_key][variant : variant + 1]}
        one = call.select_rows([variant])
        with torch.no_grad(), cad_fast.rows(unet, [ablations[variant]], space):
            alone = one.run(unet, **sample)
        # Not bit for bit: the plain modules around the ablated ones pick their kernels by the size of the batch.
        assert distance(together[variant : variant + 1], alone) < FP32_TOLERANCE


@pytest.mark.parametrize(("kind", "target"), SPACES)
def test_without_ablations_nothing_changes(kind: str, target: str) -> None:
    unet = copy_of("sd")
    space = ComponentSpace.of(unet, kind, target)
    _, inputs = some_call("sd", 4)
    plain = recorded_call("sd").run(unet, **inputs)
    empty = Ablation.from_indices(space.n, [])
    assert torch.equal(run(unet, space, [None, empty, None, empty.to_packed()], "sd", inputs), plain)
    output = run(unet, space, [None, ~empty, None, empty], "sd", inputs)
    if kind in ("neuron", "filter", "head"):  # gates of 1, in the modules' own kernels
        assert torch.equal(output[::2], plain[::2])
    assert distance(output[::2], plain[::2]) < FP32_TOLERANCE


@pytest.mark.parametrize(("kind", "target"), [SPACES[0], SPACES[3], SPACES[7]])
@pytest.mark.parametrize("share", [0.001, 0.3])
@pytest.mark.parametrize("second", [None, 0.5], ids=["removed", "mixed"])
def test_removed_weights_are_exactly_zero(kind: str, target: str, share: float, second: float | None) -> None:
    """A weight that is infinite or NaN does not show where it is removed, whatever the factors of other variants."""
    unet = copy_of("sd")
    space = ComponentSpace.of(unet, kind, target)
    chosen = Ablation.random(space.n, share, seed=1) | Ablation.from_indices(space.n, [3])
    ablations = [chosen, None if second is None else Ablation.from_indices(space.n, [0, 7], second) - chosen]
    _, inputs = some_call("sd", 2)
    clean = run(unet, space, ablations, "sd", inputs)
    entries = {entry.module: entry for entry in space}
    modules = space.modules(unet)
    with torch.no_grad():
        for name, components in space.split_indices(chosen.indices).items():
            weights = entries[name].weight_indices(components)
            modules[name].weight.view(-1)[weights] = torch.tensor([float("inf"), float("nan")])[weights % 2]
    spoilt = run(unet, space, ablations, "sd", inputs)
    assert torch.equal(spoilt[0], clean[0])
    assert spoilt[1].isnan().any()


@pytest.mark.parametrize("shape", [(6, 32), (6, 5, 32), (6, 2, 3, 32), (0, 5, 32)])
@pytest.mark.parametrize("share", [0.01, 0.3])
def test_inputs_of_any_rank(shape: tuple[int, ...], share: float) -> None:
    layer = nn.Sequential(nn.Linear(32, 11))
    space = ComponentSpace.of(layer, "weight", "all")
    ablations = [Ablation.random(space.n, share, seed=v) for v in range(3)]
    x = torch.randn(shape)
    with torch.no_grad(), cad_fast.rows(layer, ablations, space):
        output = layer(x)
    assert output.shape == (*shape[:-1], 11)
    for v, ablation in enumerate(ablations):
        weight = layer[0].weight.detach() * ~ablation.mask.view(11, 32)
        own = slice(2 * v, 2 * v + 2)
        torch.testing.assert_close(output[own], nn.functional.linear(x[own], weight, layer[0].bias))


@pytest.mark.parametrize("share", [0.01, 0.3])
@pytest.mark.parametrize(
    "settings",
    [
        {"padding": 1, "stride": 2},
        {"padding": "same", "dilation": 2},
        {"padding": "same", "kernel_size": (2, 3)},
        {"padding": "valid", "bias": False},
        {"padding": (1, 2), "padding_mode": "reflect"},
        {"padding": 1, "padding_mode": "circular", "groups": 2},
    ],
    ids=str,
)
def test_convolutions_of_any_geometry(settings, share: float) -> None:
    layer = nn.Sequential(nn.Conv2d(4, 6, **{"kernel_size": 3, **settings}))
    x = torch.randn(6, 4, 9, 7)
    for kind in ("weight", "filter"):
        space = ComponentSpace.of(layer, kind, "all")
        ablations = [Ablation.random(space.n, share, seed=9 + v) for v in range(3)]
        with torch.no_grad(), cad_fast.rows(layer, ablations, space):
            output = layer(x)
        weight = layer[0].weight.detach().clone()
        for v, ablation in enumerate(ablations):
            mask = ablation.mask.view(*weight.shape) if kind == "weight" else ablation.mask.view(-1, 1, 1, 1)
            with torch.no_grad():
                layer[0].weight.copy_(weight * ~mask)
                expected = layer(x[2 * v : 2 * v + 2])
                layer[0].weight.copy_(weight)
            torch.testing.assert_close(output[2 * v : 2 * v + 2], expected)
