"""The slow truth that rows are held against: each variant alone, on a copy of the denoiser with its weights changed."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn

from cad_fast import ConceptErasure, record
from cad_fast.attribution.measuring.passes import merge_calls
from cad_fast.components.ablation import Ablation
from cad_fast.components.space import ComponentSpace
from cad_fast.diffusion.denoisers import denoiser_of
from cad_fast.recording.call import DenoiserCall
from cad_fast.recording.data import Recording
from tests.pipelines import PIPELINES


@functools.cache
def recorded_call(name: str) -> DenoiserCall:
    """The first denoiser call of a pipeline, with three rows."""
    factory, arguments = PIPELINES[name]
    prompts = ["a cat", "a dog in noto style", "clock"]
    more = {key: value for key, value in arguments.items() if key != "negative_prompt"}
    return record(factory(), prompts, num_inference_steps=2, progress=False, **more).calls[0]


def copy_of(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    return copy.deepcopy(denoiser_of(PIPELINES[name][0]())).to(dtype)


def some_call(name: str, rows: int, dtype: torch.dtype = torch.float32) -> tuple[DenoiserCall, dict[str, Any]]:
    """A call with this many rows, no two of them alike, and the inputs that differ from those recorded."""
    call = recorded_call(name)
    call = call.select_rows([row % call.rows for row in range(rows)])
    inputs = {key: _cast(value, dtype) for key, value in call.inputs.items()}
    return call, {**inputs, call.sample_key: torch.randn(call.sample.shape).to(dtype)}


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, dict):
        return {key: _cast(entry, dtype) for key, entry in value.items()}
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def multipliers(space: ComponentSpace, ablation: Ablation) -> dict[str, Tensor]:
    """What each weight is multiplied by, {module: float64 [*weight_shape]}."""
    found = {}
    for entry, gates in zip(space, space.split(ablation.gates).values(), strict=True):
        if entry.kind == "weight":
            matrix = gates.view(entry.rows, entry.columns)
        elif entry.kind == "filter":
            matrix = gates[:, None].expand(entry.rows, entry.columns)
        else:
            row = torch.ones(entry.columns, dtype=gates.dtype)
            first, last = entry.span or (0, entry.columns)
            row[first:last] = gates.repeat_interleave(entry.block)
            matrix = row.expand(entry.rows, entry.columns)
        found[entry.module] = matrix.reshape(entry.weight_shape)
    return found


@torch.no_grad()
def ablated_copy(denoiser: nn.Module, space: ComponentSpace, ablation: Ablation | None) -> nn.Module:
    twin = copy.deepcopy(denoiser)
    if ablation is not None:
        modules = space.modules(twin)
        for name, multiplier in multipliers(space, ablation).items():
            weight = modules[name].weight
            weight.copy_(torch.where(multiplier == 0, 0.0, weight * multiplier))
    return twin


def variant_outputs(
    denoiser: nn.Module, space: ComponentSpace, ablations: list[Ablation | None], name: str, inputs: dict[str, Any]
) -> Tensor:
    """The outputs of a call's rows, variant-major, each variant by a copy of its own."""
    call = recorded_call(name)
    rows = len(inputs[call.sample_key])
    call = call.select_rows([row % call.rows for row in range(rows)])
    per_variant = rows // len(ablations)
    outputs = []
    for variant, ablation in enumerate(ablations):
        own = list(range(variant * per_variant, (variant + 1) * per_variant))
        part = DenoiserCall(0, call.timestep, inputs, call.sample_key, None, row_paths=call.row_paths).select_rows(own)
        with torch.no_grad():
            outputs.append(part.run(ablated_copy(denoiser, space, ablation)))
    return torch.cat(outputs)


def distance(a: Tensor, b: Tensor) -> float:
    """Relative distance of the rows of two tensors, the largest."""
    a, b = a.detach().double().flatten(1), b.detach().double().flatten(1)
    return ((a - b).norm(dim=1) / b.norm(dim=1)).max().item()


def slow_gradient(
    denoiser: nn.Module, recording: Recording, space: ComponentSpace, ablation: Ablation | None
) -> Tensor:
    """dJ/dm float32 [n], J being ConceptErasure: intact w * dJ/dw at the ablated network, summed per component."""
    twin, call = ablated_copy(denoiser, space, ablation), merge_calls(recording.calls)
    modules, intact = space.modules(twin), space.modules(denoiser)
    for module in modules.values():
        module.weight.requires_grad_(True)
    j = ConceptErasure()(call.run(twin), call).mean()
    gradients = torch.autograd.grad(j, [module.weight for module in modules.values()])
    total = torch.zeros(space.n)
    for entry, gradient in zip(space, gradients, strict=True):
        part = entry.reduce(intact[entry.module].weight.detach() * gradient)
        total[entry.offset : entry.offset + entry.count] += part  # modules may share components
    return total
