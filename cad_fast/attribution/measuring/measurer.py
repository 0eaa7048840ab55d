"""Measure J under a group of ablations, for one concept or many. A pass serves every concept that can use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType

import torch
from torch import Tensor, nn

from ...components.ablation import Ablation
from ...components.space import ComponentSpace
from ...diffusion.context import only_gradients_of
from ...diffusion.trees import leaves
from ...objectives import Objective
from ...recording.call import DenoiserCall
from ...row_engine.beginnings import Beginnings
from ...row_engine.engine import RowEngine, rows
from .passes import merge_calls, repeated, unconditional_call
from .plans import MeasuringPlan, Piece, Target

# Computes groups of ablations, given as (number of the first, how many), in any order: (first, J [concepts, k]).
Compute = Callable[[list[tuple[int, int]]], Iterator[tuple[int, Tensor]]]


class Measurer:
    """Measure groups of ablations on one denoiser.

    Enter it as a context first, inside which the denoiser is in eval mode. Before that it is plain data, which can be
    sent to another process.

    Args:
        denoiser: The module that is run.
        targets: What is measured on which recording.
        space: The components that the ablations are of.
        rows_per_pass: How many rows go through the denoiser at once, at most.
        share: Whether ablations that follow each other lie in the same layers, so that passes are worth sharing what
            comes before (see ``Beginnings``). They then have several ablations each, of fewer rows.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        targets: Sequence[Target],
        space: ComponentSpace,
        rows_per_pass: int,
        *,
        share: bool = False,
    ) -> None:
        self.denoiser, self.targets, self.space, self.share = denoiser, list(targets), space, share
        self.plan = MeasuringPlan.of(targets, rows_per_pass, share=share)
        self._engine: RowEngine | None = None
        self._beginnings: Beginnings | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Measurer:
        self._stack = ExitStack()
        self._beginnings = Beginnings(self.denoiser) if self.share else None
        self._stack.enter_context(torch.no_grad())
        self._stack.enter_context(only_gradients_of(self.denoiser, []))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._engine is not None:
            self._engine.__exit__(kind, error, trace)
            self._engine = None
        self._beginnings = None  # with what it keeps
        self._stack.close()

    def measure(self, group: Sequence[Ablation]) -> Tensor:
        """Measure J under each ablation; float64 [targets, len(group)]."""
        self._engine = _switch(self._engine, self.denoiser, group, self.space)
        sums = torch.zeros(len(self.targets), len(group), dtype=torch.float64)
        for number in range(len(self.plan.passes)):
            self._add_pass(number, len(group), sums)
        return sums / torch.tensor(self.plan.n_rows)[:, None]

    def _add_pass(self, place: int, variants: int, sums: Tensor) -> None:
        pieces = self.plan.passes[place]
        parts = [self.plan.recordings[number].calls[place].select_rows(numbers) for number, place, numbers in pieces]
        call, output = self._run(merge_calls(parts), variants, ("conditional", place))
        live: DenoiserCall | None = None  # with the unconditional output of this pass, for objectives of both branches
        for number, target in enumerate(self.targets):
            numbers = self._rows_of(target, pieces)
            if not numbers:
                continue
            used = call
            if target.objective.both_branches:
                live = live or self._with_unconditional(call, parts, variants, place)
                used = live
            values = _on_rows(target.objective, output, used, numbers, variants)
            sums[number] += values.double().view(variants, -1).sum(1).cpu()

    def _rows_of(self, target: Target, pieces: list[Piece]) -> list[int]:
        """Return which rows of a pass the target looks at."""
        looked_at: list[int] = []
        at = 0
        for number, place, numbers in pieces:
            recording = self.plan.recordings[number]
            if recording is target.recording and target.objective.active(recording.calls[place]):
                looked_at += range(at, at + len(numbers))
            at += len(numbers)
        return looked_at

    def _run(self, call: DenoiserCall, variants: int, key: tuple[str, int]) -> tuple[DenoiserCall, Tensor]:
        """Run the rows of a call under every variant: (the call with its rows repeated, the denoiser's output)."""
        assert self._engine is not None, "the group's engine is entered"
        every = repeated(call, variants)
        if self._beginnings is None:
            return every, every.run(self.denoiser)

        def run(times: int) -> Tensor:
            return (every if times == variants else repeated(call, times)).run(self.denoiser)

        form = tuple((path, leaf.shape, leaf.dtype) for path, leaf in leaves(call.inputs) if isinstance(leaf, Tensor))
        return every, self._beginnings.run(self._engine, run, form=form, key=key)

    def _with_unconditional(
        self, call: DenoiserCall, parts: list[DenoiserCall], variants: int, place: int
    ) -> DenoiserCall:
        other = merge_calls([unconditional_call(part) for part in parts])
        _, output = self._run(other, variants, ("unconditional", place))
        return replace(call, unconditional_output=output)


def _on_rows(objective: Objective, output: Tensor, call: DenoiserCall, numbers: list[int], variants: int) -> Tensor:
    """J of some of the rows of each variant."""
    each = call.rows // variants
    if len(numbers) == each:
        return objective(output, call)
    places = [variant * each + row for variant in range(variants) for row in numbers]
    return objective(output[places], call.select_rows(places))


def _switch(
    engine: RowEngine | None, denoiser: nn.Module, group: Sequence[Ablation], space: ComponentSpace
) -> RowEngine:
    """Return an entered engine for the group: the same one where it has as many variants."""
    if engine is not None:
        if engine.variants == len(group):
            engine.set(group)
            return engine
        engine.__exit__(None, None, None)
    return rows(denoiser, group, space).__enter__()
