"""Standard errors, the weight of ablated gradients, reliability: against slow gradients and against repeats."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from cad_fast import Ablation, ComponentSpace
from cad_fast.attribution import Attributor
from cad_fast.attribution.gradients.averages import Averages, more_passes
from cad_fast.attribution.trust import correlation
from tests.pipelines import stable_diffusion
from tests.row_truth import slow_gradient


@pytest.mark.parametrize("rows_per_pass", [4, 6, 12])
@pytest.mark.parametrize("kind", ["neuron", "weight"])
def test_errors_are_the_spread_of_the_groups_gradients(pipeline, recording, kind: str, rows_per_pass: int) -> None:
    space = ComponentSpace.of(pipeline, kind, "attention" if kind == "weight" else None)
    parts, weight = 6, 0.3
    attributor = Attributor(
        pipeline, components=space, method="ablated_gradient", fraction=1 / parts, ablated_weight=weight, seed=5
    )
    scores = attributor.run(recording, rows_per_pass=rows_per_pass, progress=False)
    drawn = Ablation.balanced_partition(space.n, parts, seed=5)
    gradients = torch.stack([slow_gradient(pipeline.unet, recording, space, ablation) for ablation in drawn]).double()
    kept = ~torch.stack([ablation.mask for ablation in drawn])
    ablated = torch.where(kept, 0, gradients).sum(0)
    mean = torch.where(kept, gradients, 0).sum(0) / (parts - 1)
    size = max(1, rows_per_pass // 6)
    squares, groups = torch.zeros(2, space.n, dtype=torch.float64)
    for at in range(0, parts, size):
        count = kept[at : at + size].sum(0)
        own = torch.where(kept[at : at + size], gradients[at : at + size], 0).sum(0) / count.clamp(min=1)
        squares += count * (own - mean).square()
        groups += count > 0
    expected = (squares / (groups - 1) * ((1 - weight) ** 2 / (parts - 1) + weight**2)).sqrt()
    assert scores.standard_error is not None
    largest = float(expected.max())
    torch.testing.assert_close(scores.standard_error.double(), expected, rtol=5e-3, atol=2e-3 * largest)
    values = (1 - weight) * mean + weight * ablated
    torch.testing.assert_close(scores.values.double(), values, rtol=1e-3, atol=1e-3 * float(values.abs().max()))
    assert scores.provenance["estimate"]["reliability"] == pytest.approx(
        max(0.0, 1 - float(expected.square().mean() / values.var(correction=0))), abs=1e-2
    )


def drawn_averages(truth: Tensor, bend: Tensor, noise: float, parts: int, weight: float | None, seed: int = 0):
    """Averages of gradients ``truth`` + noise, plus ``bend`` where ablated, each in a group of its own."""
    n = len(truth)
    space = SimpleNamespace(n=n, kind="neuron", modules=lambda denoiser: {"a": nn.Linear(1, 1)})
    sums = Averages(space, nn.Identity(), {})
    generator = torch.Generator().manual_seed(1_000_003 + seed)
    for ablation in Ablation.balanced_partition(n, parts, seed):
        gradient = truth + noise * torch.randn(n, generator=generator)
        sums.tensors["kept"] += torch.where(ablation.mask, 0, gradient)
        sums.tensors["group"] += torch.where(ablation.mask, 0, gradient)
        sums.tensors["ablated"] += torch.where(ablation.mask, gradient + bend, 0)
        sums.close([ablation])
    return sums.averaged(parts - 1, 1, 1, weight)


@pytest.mark.parametrize("bending", [0.0, 0.5, 3.0])
def test_the_chosen_weight_has_the_least_error(bending: float) -> None:
    truth, bend = torch.randn(20_000), bending * torch.randn(20_000)
    wanted = truth + bend / 2
    errors = {
        weight / 20: float((drawn_averages(truth, bend, 1.0, 20, weight / 20).values - wanted).square().mean())
        for weight in range(11)
    }
    found = drawn_averages(truth, bend, 1.0, 20, None)
    assert abs(found.ablated_weight - min(errors, key=errors.__getitem__)) <= 0.05
    assert float((found.values - wanted).square().mean()) <= 1.02 * min(errors.values())


def test_stated_errors_and_reliability_are_those_of_repeats() -> None:
    truth, bend = torch.randn(20_000), 0.3 * torch.randn(20_000)
    runs = [drawn_averages(truth, bend, 2.0, 20, 0.5, seed) for seed in range(4)]
    spread = torch.stack([run.values for run in runs]).var(0).mean().sqrt()
    stated = torch.stack([run.standard_error for run in runs]).square().mean().sqrt()
    assert float(stated / spread) == pytest.approx(1, abs=0.03)
    assert runs[0].reliability == pytest.approx(float(correlation(runs[0].values, runs[1].values)), abs=0.02)
    # Two runs together are twice the passes.
    both = float(correlation(runs[0].values + runs[1].values, runs[2].values + runs[3].values))
    assert more_passes(runs[0].reliability, 2) == pytest.approx(both, abs=0.02)
    assert more_passes(0.5, 1) == 0.5 and more_passes(0.5, 3) == 0.75


def test_sums_read_from_a_file_go_where_the_weights_are() -> None:
    unet = stable_diffusion().unet
    space = ComponentSpace.of(unet, "head")
    read = {key: torch.ones(space.n) for key in Averages.KEYS}
    away = copy.deepcopy(unet).to("meta")  # the one other device that every machine has
    assert {tensor.device.type for tensor in Averages(space, away, read).tensors.values()} == {"meta"}
