"""First-order attribution: alpha_i = w_i dJ/dw_i at the intact network (arXiv 2412.02542, equation 5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..components import ComponentSpace, ModuleComponents
from ..objectives import Objective
from ..recording_data import REPLAY_TOLERANCE, Recording
from ..row_engine.gates import scale_columns, scale_filters
from .passes import Pass, gather, objective_of, plan_passes
from .store import RunState

Via = Literal["weight", "gate"]


@contextmanager
def only_gradients_of(denoiser: nn.Module, wanted: list[nn.Parameter]) -> Iterator[None]:
    """Within, the denoiser is in eval mode and no parameter but ``wanted`` asks for a gradient; restored afterwards."""
    flags = [(parameter, parameter.requires_grad) for parameter in denoiser.parameters()]
    training = [module for module in denoiser.modules() if module.training]
    denoiser.eval()
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    for parameter in wanted:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module in training:
            module.training = True


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
        with _added_to(sums, leaves):
            values.sum().backward(inputs=list(leaves.values()))


@contextmanager
def _added_to(sums: dict[str, Tensor], leaves: Mapping[str, Tensor]) -> Iterator[None]:
    """Within, a backward pass adds each leaf's gradient to its sum as soon as it is there, and lets go of it.

    All gradients at once would take as much memory again as the sums. A leaf without effect, as the last block's text
    stream of a joint attention, adds nothing. What the leaves had as ``grad`` they have again afterwards.
    """

    def adding(total: Tensor) -> Any:
        def add(leaf: Tensor) -> None:
            assert leaf.grad is not None
            total.add_(leaf.grad)
            leaf.grad = None

        return add

    before = {name: leaf.grad for name, leaf in leaves.items()}
    handles = []
    try:
        for name, leaf in leaves.items():
            leaf.grad = None
            handles.append(leaf.register_post_accumulate_grad_hook(adding(sums[name])))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, leaf in leaves.items():
            leaf.grad = before[name]


@contextmanager
def _no_gates(weights: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    yield weights


def require_replayed(output: Tensor, recorded: Tensor) -> None:
    """Raises ValueError when ``output`` [R, ...] is not what was recorded, beyond rounding."""
    recorded = recorded.to(output.device)
    distance = ((output.float() - recorded.float()).norm() / recorded.float().norm().clamp(min=1e-20)).item()
    if not distance <= REPLAY_TOLERANCE[output.dtype]:
        raise ValueError(
            f"replaying the recording gives outputs that differ from the recorded ones by {100 * distance:.2g}%: "
            "the denoiser has changed since (an edit or adapter is active?), record again"
        )


@torch.no_grad()
def require_unchanged(denoiser: nn.Module, recording: Recording, objective: Objective) -> None:
    """Raises ValueError when one recorded row that the objective looks at is not what the denoiser gives now.

    For methods that never run the intact network on what was recorded. Recordings without outputs are not looked at.
    """
    call = next((c for c in recording.calls if objective.active(c) and c.output is not None), None)
    if call is not None:
        row = call.select_rows([0])
        with only_gradients_of(denoiser, []):
            require_replayed(row.run(denoiser), row.output)


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
    state = state or RunState(None, {}, resume=False)
    sums = runner.run(passes, state, progress)
    state.release()
    scores = torch.empty(space.n)
    for entry in space:
        total = sums.pop(entry.module).div_(rows)
        if via == "weight":
            total = entry.reduce(total.mul_(runner.modules[entry.module].weight.detach()))
        scores[entry.offset : entry.offset + entry.count] = total
    return scores
