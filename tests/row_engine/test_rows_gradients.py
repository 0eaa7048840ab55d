"""Gradients through rows, against autograd on explicitly masked weights, one variant at a time."""

import functools
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import cad_fast
from cad_fast.components.ablation import Ablation
from cad_fast.components.space import ComponentSpace
from cad_fast.diffusion.denoisers import output_tensor
from cad_fast.ops import use_backend
from cad_fast.ops.registry import OPS
from tests.rounding import network_bound
from tests.row_truth import copy_of, multipliers, some_call

VARIANTS = 3


def ablations_of(n: int, share: float, factor: float = 0.0) -> list[Ablation | None]:
    ablations: list[Ablation | None] = [Ablation.random(n, share, seed=v, factor=factor) for v in range(VARIANTS)]
    ablations[1] = None
    return ablations


class Sharing(nn.Module):
    """A linear that is called twice in one forward, and a convolution with groups."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2)
        self.twice = nn.Linear(6, 6)
        self.last = nn.Linear(6, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu_().flatten(2).transpose(1, 2)
        x = nn.functional.relu(self.twice(x), inplace=True)
        return self.last(self.twice(x))


def effective_gradients(model: nn.Module, space: ComponentSpace, ablations, run, objective, groups: int):
    """The weight * dJ / d(effective weight) of each variant, by autograd in the model's dtype: {module: [V, N, K]}."""
    modules = space.modules(model)
    found: dict[str, list[Tensor]] = {name: [] for name in modules}
    for variant in range(groups):
        ablation = ablations[variant] or Ablation.from_indices(space.n, [])
        weights = {
            f"{name}.weight": (modules[name].weight * multiplier).detach().to(modules[name].weight).requires_grad_()
            for name, multiplier in multipliers(space, ablation).items()
        }
        j = objective(run(variant, weights)).sum()
        gradients = torch.autograd.grad(j, list(weights.values()), allow_unused=True)
        for name, gradient in zip(modules, gradients, strict=True):
            weight = modules[name].weight.detach()
            gradient = torch.zeros_like(weight) if gradient is None else gradient
            found[name].append((weight * gradient).flatten(1))
    return {name: torch.stack(parts).double() for name, parts in found.items()}


def split_scores(space: ComponentSpace, ablations, per_variant: dict[str, Tensor]) -> list[Tensor]:
    """The sums over the variants that keep and that ablate each weight, module by module: float64 [N, K] each."""
    masks = torch.stack([torch.zeros(space.n, dtype=torch.bool) if a is None else a.mask for a in ablations])
    sums = []
    for entry in space:
        own = masks[:, entry.offset : entry.offset + entry.count].view(len(ablations), entry.rows, entry.columns)
        sums += [(per_variant[entry.module] * part).sum(0) for part in (~own, own)]
    return sums


def check_scores(engine, sums: list[Tensor], within: list[float]) -> None:
    got = [tensor for name in engine.kept for tensor in (engine.kept[name], engine.ablated[name])]
    for ours, expected, bound in zip(got, sums, within, strict=True):
        assert ours.dtype == torch.float32
        assert (ours.double() - expected).norm() <= bound * expected.norm()


@pytest.mark.parametrize("factor", [0.0, 0.5])
@pytest.mark.parametrize("share", [0.01, 0.4])
def test_scores_of_linears_and_convolutions(share: float, factor: float) -> None:
    model = Sharing().requires_grad_(False)
    space = ComponentSpace.of(model, "weight", "all")
    ablations = ablations_of(space.n, share, factor)
    ablations[2] = ablations[2] | Ablation.from_indices(space.n, [1, 60], factor)
    x = torch.randn(2 * VARIANTS, 4, 6, 5)
    objective = torch.square
    with cad_fast.rows(model, ablations, space, gradients="scores") as engine:
        for _ in range(2):  # passes add up
            objective(model(x)).sum().backward()
    wide = Sharing().double()
    wide.load_state_dict(model.state_dict())
    expected = effective_gradients(
        wide,
        space,
        ablations,
        lambda v, weights: functional_call(wide, weights, (x[2 * v : 2 * v + 2].double(),)),
        objective,
        VARIANTS,
    )
    sums = [2 * part for part in split_scores(space, ablations, expected)]
    check_scores(engine, sums, [1e-5] * len(sums))
    assert all(parameter.grad is None for parameter in model.parameters())
    engine.reset_scores()
    assert not any(sums.any() for sums in (*engine.kept.values(), *engine.ablated.values()))


@pytest.mark.parametrize("target", ["feed-forward", "cross-attention-kv", "convolution"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_scores_of_a_unet(target: str, dtype: torch.dtype) -> None:
    unet = copy_of("sd", dtype)
    space = ComponentSpace.of(unet, "weight", target)
    ablations = ablations_of(space.n, 0.3)
    call, inputs = some_call("sd", VARIANTS, dtype)
    with cad_fast.rows(unet, ablations, space, gradients="scores") as engine:
        call.run(unet, **inputs).square().sum().backward()

    def run(model: nn.Module, variant: int, weights: dict[str, Tensor]) -> Tensor:
        kind = next(model.parameters()).dtype
        own = {k: v.to(kind)[[variant]] if k != "timestep" and torch.is_tensor(v) else v for k, v in inputs.items()}
        return output_tensor(functional_call(model, weights, (), own))

    def truth(model: nn.Module) -> list[Tensor]:
        gradients = effective_gradients(model, space, ablations, functools.partial(run, model), torch.square, VARIANTS)
        return split_scores(space, ablations, gradients)

    expected = truth(unet.float())
    # There and back; what is left of large gradients that cancel is off by more.
    check_scores(engine, expected, [2 * network_bound(unet, dtype) + 1e-4] * len(expected))


@pytest.mark.parametrize("kind", ["neuron", "head", "filter"])
def test_gates(kind: str) -> None:
    """Against gates as multipliers of the weights, one variant at a time."""
    unet = copy_of("sd")
    space = ComponentSpace.of(unet, kind)
    ablations = ablations_of(space.n, 0.3, 0.5)
    call, inputs = some_call("sd", VARIANTS)
    with cad_fast.rows(unet, ablations, space, gradients="gates") as engine:
        gates = engine.gates
        j = call.run(unet, **inputs).square().sum()
        gradients = dict(zip(gates, torch.autograd.grad(j, list(gates.values())), strict=True))
    assert list(gates) == [entry.module for entry in space]

    def run(variant: int, weights: dict[str, Tensor]) -> Tensor:
        own = {k: v[[variant]] if k != "timestep" and torch.is_tensor(v) else v for k, v in inputs.items()}
        return output_tensor(functional_call(unet, weights, (), own))

    expected = effective_gradients(unet, space, ablations, run, torch.square, VARIANTS)
    for entry in space:
        own = slice(entry.offset, entry.offset + entry.count)
        for variant, ablation in enumerate(ablations):
            values = torch.ones(entry.count) if ablation is None else ablation.gates[own].float()
            assert torch.equal(gates[entry.module][variant].detach(), values)
            wanted = entry.reduce(expected[entry.module][variant])
            scale = wanted.abs().max()
            assert (gradients[entry.module][variant] - wanted).abs().max() < 1e-4 * scale, entry.module


@pytest.mark.parametrize(
    ("kind", "target", "share"),
    [("weight", "all", 0.3), ("weight", "all", 0.005), ("head", "attention", 0.3), ("filter", "convolution", 0.3)],
)
def test_gradients_of_the_inputs(kind: str, target: str, share: float) -> None:
    unet = copy_of("sd")
    space = ComponentSpace.of(unet, kind, target)
    ablations = ablations_of(space.n, share)
    call, inputs = some_call("sd", VARIANTS)
    sample = inputs[call.sample_key].requires_grad_()
    with cad_fast.rows(unet, ablations, space):
        (gradient,) = torch.autograd.grad(call.run(unet, **inputs).square().sum(), sample)
    for variant, ablation in enumerate(ablations):
        weights = {}
        if ablation is not None:
            weights = {
                f"{name}.weight": unet.get_submodule(name).weight * multiplier.float()
                for name, multiplier in multipliers(space, ablation).items()
            }
        own = {k: v[[variant]] if k != "timestep" and torch.is_tensor(v) else v for k, v in inputs.items()}
        output = output_tensor(functional_call(unet, weights, (), own))
        (expected,) = torch.autograd.grad(output.square().sum(), sample)
        torch.testing.assert_close(gradient[variant], expected[variant], rtol=1e-3, atol=1e-5)


def test_set_swaps_ablations_and_keeps_the_sums() -> None:
    model = Sharing().requires_grad_(False)
    space = ComponentSpace.of(model, "weight", "all")
    first, second = ablations_of(space.n, 0.3), [Ablation.seeded(space.n, 0.4, 7, v) for v in range(VARIANTS)]
    x = torch.randn(VARIANTS, 4, 6, 5)
    sums = []
    for ablations in (first, second):
        with cad_fast.rows(model, ablations, space, gradients="scores") as engine:
            model(x).square().sum().backward()
        sums.append(engine.kept)
    with cad_fast.rows(model, first, space, gradients="scores") as engine:
        j = model(x).square().sum()
        engine.set(second)  # the way back is still that of the first
        j.backward()
        model(x).square().sum().backward()
    for name, kept in engine.kept.items():
        torch.testing.assert_close(kept, sums[0][name] + sums[1][name])


def test_no_graph_where_none_is_wanted() -> None:
    model = Sharing().requires_grad_(False)
    space = ComponentSpace.of(model, "weight", "all")
    x = torch.randn(VARIANTS, 4, 6, 5)
    with cad_fast.rows(model, ablations_of(space.n, 0.3), space):
        assert not model(x).requires_grad
    with torch.no_grad(), cad_fast.rows(model, ablations_of(space.n, 0.3), space, gradients="scores"):
        assert not model(x).requires_grad


@pytest.mark.parametrize("share", [0.3, 0.001], ids=["many", "few"])
def test_scores_are_taken_on_the_backend_that_the_rows_ran_on(share: float) -> None:
    """From another thread too, as autograd does on a GPU."""
    model, x = Sharing(), torch.randn(2 * VARIANTS, 4, 6, 6)
    space = ComponentSpace.of(model, "weight", "all")
    before = OPS["masked_linear_scores"].runs.copy()
    with cad_fast.rows(model, ablations_of(space.n, share), space, gradients="scores"):
        with use_backend("reference"):
            y = model(x)
        thread = threading.Thread(target=y.square().sum().backward)
        thread.start()
        thread.join()
    ran = OPS["masked_linear_scores"].runs - before
    assert set(ran) == {"reference"}
