"""First-order attribution: alpha_i = w_i dJ/dw_i at the intact network (arXiv 2412.02542, equation 5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ...components.space import ComponentSpace, ModuleComponents
from ...diffusion.context import only_gradients_of
from ...objectives import Objective
from ...recording.data import Recording
from ...row_engine.gates import scale_columns, scale_filters
from ..measuring.passes import gather, objective_of
from ..measuring.plans import Pass, plan_passes
from ..measuring.unchanged import require_replayed
from ..store import RunState
from .base import Estimate, Estimator, Problem

Via = Literal["weight", "gate"]


@contextmanager
def gated(modules: Mapping[str, nn.Module], entries: Mapping[str, ModuleComponents]) -> Iterator[dict[str, Tensor]]:
    """Within, each component's weights are multiplied by a gate of value 1; yields the gates {module: [count]}.

    Neurons and heads are gated at their module's input, filters at its output less the bias: the same function as
    scaling the weights, and its gradient needs no gradient of the weights.
    """
    gates: dict[str, Tensor] = {}
    handles = []
    for name, module in modules.items():
        entry = entries[name]
        gate = torch.ones(entry.count, device=module.weight.device, dtype=module.weight.dtype, requires_grad=True)
        gates[name] = gate
        if entry.kind == "filter":
            handles.append(module.register_forward_hook(_gate_filters(gate[None])))
        else:
            handles.append(module.register_forward_pre_hook(_gate_columns(gate[None], entry.block)))
    try:
        yield gates
    finally:
        for handle in handles:
            handle.remove()


def _gate_columns(gate: Tensor, block: int) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (scale_columns(inputs[0], gate, block), *inputs[1:])

    return hook


def _gate_filters(gate: Tensor) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return scale_filters(output, gate, module.bias)

    return hook


class GradientPasses:
    """Sums of dJ/dw (or dJ/dgate) in fp32 over passes of a recording through ``denoiser``."""

    def __init__(
        self, denoiser: nn.Module, recording: Recording, objective: Objective, space: ComponentSpace, via: Via
    ) -> None:
        if via == "gate" and space.kind == "weight":
            raise ValueError("single weights have no gates: use via='weight'")
        self.denoiser, self.recording, self.objective = denoiser, recording, objective
        self.entries = {entry.module: entry for entry in space}
        self.modules = space.modules(denoiser)
        self.via = via

    def run(self, passes: list[Pass], state: RunState, progress: bool) -> dict[str, Tensor]:
        """The gradient sums {module: float32 [*weight_shape] or [count]}, going on from ``state``."""
        weights = {name: module.weight for name, module in self.modules.items()}
        wanted = list(weights.values()) if self.via == "weight" else []
        gates = gated(self.modules, self.entries) if self.via == "gate" else _no_gates(weights)
        with only_gradients_of(self.denoiser, wanted), gates as leaves, torch.enable_grad():
            sums = state.sums or {name: torch.zeros(leaf.shape, device=leaf.device) for name, leaf in leaves.items()}
            sums = {name: sums[name].to(leaf.device) for name, leaf in leaves.items()}
            bar = tqdm(total=len(passes), initial=state.done, desc="gradient", unit="pass", disable=not progress)
            with bar:
                for number in range(state.done, len(passes)):
                    self.add_pass(number, passes[number], leaves, sums, check=number == state.done)
                    state.update(number + 1, sums)
                    bar.update()
        return sums

    def add_pass(
        self, number: int, pieces: Pass, leaves: Mapping[str, Tensor], sums: dict[str, Tensor], check: bool
    ) -> None:
        """Add the gradients of pass ``number``; with ``check`` see first that it gives what was recorded."""
        call = gather(self.recording, pieces)
        output, values = objective_of(self.denoiser, self.recording, self.objective, pieces, call)
        if check and call.output is not None:
            require_replayed(output.detach(), call.output)
        gradients = torch.autograd.grad(values.sum(), list(leaves.values()), allow_unused=True)
        for name, gradient in zip(leaves, gradients, strict=True):
            if gradient is not None:  # the last block's text stream of a joint attention has no effect
                sums[name] += gradient.float()


@contextmanager
def _no_gates(weights: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    yield weights


def gradient_scores(
    denoiser: nn.Module,
    recording: Recording,
    objective: Objective,
    space: ComponentSpace,
    *,
    via: Via | None = None,
    rows_per_pass: int = 16,
    state: RunState | None = None,
    progress: bool = True,
) -> Tensor:
    """alpha_i = w_i dJ/dw_i, float32 [n], J being the mean over the recording's rows and active timesteps.

    ``via`` the gradient of the weights (summed over a component's weights), or of a gate per component (the default
    for neurons, filters and heads): the same numbers, the gate needs less memory.
    Raises ValueError when the recording is of another model, lacks what the objective needs, or J is not finite.
    """
    via = via or ("weight" if space.kind == "weight" else "gate")
    passes = plan_passes(recording, objective, rows_per_pass)
    rows = sum(len(numbers) for pieces in passes for _, numbers in pieces)
    runner = GradientPasses(denoiser, recording, objective, space, via)
    sums = runner.run(passes, state or RunState(None, {}, resume=False), progress)
    parts = []
    for entry in space:
        total = sums[entry.module] / rows
        if via == "weight":
            total = entry.reduce(total * runner.modules[entry.module].weight.detach().float())
        parts.append(total.cpu())
    return torch.cat(parts)


@dataclass(frozen=True)
class Gradient(Estimator):
    """alpha_i = w_i dJ/dw_i at the intact network (arXiv 2412.02542, equation 5)."""

    name = "gradient"
    via: Via | None = None

    def run(self, problem: Problem) -> Estimate:
        """See ``gradient_scores``."""
        return Estimate(gradient_scores(*problem.arguments(), via=self.via, **problem.keywords()), None, {})

    def cost(self, problem: Problem) -> dict[str, int]:
        passes = len(problem.plan().passes)
        return {"forward": passes, "backward": passes}
