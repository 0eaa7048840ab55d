"""Sums of gradients over the passes of a recording, of weights or of one gate per component."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ...components.module_components import ModuleComponents
from ...components.space import ComponentSpace
from ...diffusion.context import only_gradients_of
from ...diffusion.layer_calls import input_of, with_input
from ...diffusion.structure import Layer
from ...objectives import Objective
from ...recording.data import Recording
from ...row_engine.gates import scale_columns, scale_filters
from ..measuring.passes import gather, objective_of
from ..measuring.plans import Pass
from ..measuring.reached import require_differentiable, require_reached
from ..measuring.unchanged import require_replayed
from ..store import RunState

Via = Literal["weight", "gate"]


@contextmanager
def gated(modules: Mapping[str, Layer], entries: Mapping[str, ModuleComponents]) -> Iterator[dict[str, Tensor]]:
    """Multiply each component's weights by a gate of value 1. Yields the gates {module: [count]}.

    Components that have shares in several modules have one gate, under the first module's name. Neurons and heads are
    gated at their module's input, filters at its output less the bias. That is the same function as scaling the
    weights, and its gradient needs no gradient of the weights.
    """
    gates: dict[str, Tensor] = {}
    firsts: dict[int, Tensor] = {}
    handles = []
    for name, module in modules.items():
        entry = entries[name]
        if entry.offset not in firsts:
            ones = torch.ones(entry.count, device=module.weight.device, dtype=module.weight.dtype)
            firsts[entry.offset] = gates[name] = ones.requires_grad_()
        gate = firsts[entry.offset]
        if entry.kind == "filter":
            handles.append(module.register_forward_hook(_gate_filters(gate[None])))
        else:
            hook = _gate_columns(gate[None], entry)
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield gates
    finally:
        for handle in handles:
            handle.remove()


def _gate_columns(gate: Tensor, entry: ModuleComponents) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return with_input(args, kwargs, scale_columns(input_of(args, kwargs), entry.per_column(gate, 1.0)))

    return hook


def _gate_filters(gate: Tensor) -> Any:
    def hook(module: Layer, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return scale_filters(output, gate, module.bias)

    return hook


class GradientSums:
    """Sums of dJ/dw (or dJ/dgate) in float32 over passes of a recording through a denoiser.

    Args:
        denoiser: The module whose components are looked at.
        recording: The calls that the passes take rows from.
        objective: J.
        space: The components.
        via: "weight" for gradients of the weights, "gate" for those of one gate per component.

    Raises:
        TypeError: weights are quantised.
        ValueError: ``via`` is "gate" for single weights, which have none.
    """

    def __init__(
        self, denoiser: nn.Module, recording: Recording, objective: Objective, space: ComponentSpace, via: Via
    ) -> None:
        if via == "gate" and space.kind == "weight":
            raise ValueError("single weights have no gates: use via='weight'")
        self.denoiser, self.recording, self.objective = denoiser, recording, objective
        self.entries = {entry.module: entry for entry in space}
        self.modules = space.modules(denoiser)
        self.via = via
        require_differentiable(self.modules)

    def run(self, passes: list[Pass], state: RunState, progress: bool) -> dict[str, Tensor]:
        """Sum the gradients of all passes, going on from ``state``.

        Returns:
            {module: float32 [*weight_shape], or [count] for gates}.

        Raises:
            ValueError: no gradient reaches a module that has an effect.
        """
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
        silent = {name: self.modules[name] for name, total in sums.items() if not bool(total.count_nonzero())}
        if silent:
            with only_gradients_of(self.denoiser, []):
                require_reached(self.denoiser, gather(self.recording, passes[0]), silent)
        return sums

    def add_pass(
        self, number: int, pieces: Pass, leaves: Mapping[str, Tensor], sums: dict[str, Tensor], check: bool
    ) -> None:
        """Add the gradients of pass ``number``. With ``check`` require first that it gives what was recorded."""
        call = gather(self.recording, pieces)
        output, values = objective_of(self.denoiser, self.recording, self.objective, pieces, call)
        if check and call.output is not None:
            require_replayed(output.detach(), call.output)
        with _added_to(sums, leaves):
            if values.requires_grad:  # else no leaf has a part in it, or none that is recorded: see require_reached
                values.sum().backward(inputs=list(leaves.values()))


@contextmanager
def _added_to(sums: dict[str, Tensor], leaves: Mapping[str, Tensor]) -> Iterator[None]:
    """Add each leaf's gradient to its sum as soon as a backward pass inside has it, and let go of it.

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
