"""How far each component's removal moves the denoiser's output: what an edit may cost the concepts it should keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...components.space import ComponentSpace
from ...diffusion.timesteps import Window
from ...objectives import Objective
from ...recording.call import DenoiserCall
from ...recording.data import Recording
from ..gradients.sums import GradientSums
from ..measuring.passes import gather
from ..measuring.plans import Pass, plan_passes
from ..measuring.unchanged import require_replayed
from ..store import RunState
from .base import Estimate, Estimator, Problem


class RandomSigns(Objective):
    """J = v . output, with signs v drawn from ``seed``, of every row its own."""

    name = "random_signs"
    seed = 0

    def value(self, output: Tensor, call: DenoiserCall) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        signs = torch.randint(0, 2, output.shape, generator=generator) * 2 - 1
        return (output.float() * signs.to(output.device)).flatten(1).sum(1)


class _SquaredGradients(GradientSums):
    """Sums of squares of the gradients of v . output over passes, for ``probes`` draws of v each."""

    objective: RandomSigns
    probes: int
    seed: int

    def add_pass(
        self, number: int, pieces: Pass, leaves: Mapping[str, Tensor], sums: dict[str, Tensor], check: bool
    ) -> None:
        call = gather(self.recording, pieces)
        output = call.run(self.denoiser)
        if check and call.output is not None:
            require_replayed(output.detach(), call.output)
        # Without a gradient nothing is added, and require_reached says whether that is right.
        for probe in range(self.probes if output.requires_grad else 0):
            self.objective.seed = self.seed * 1_000_003 + number * self.probes + probe
            gradients = torch.autograd.grad(
                self.objective(output, call).sum(),
                list(leaves.values()),
                retain_graph=probe + 1 < self.probes,
                allow_unused=True,
            )
            for name, gradient in zip(leaves, gradients, strict=True):
                if gradient is not None:
                    sums[name] += gradient.float().square()


@dataclass(frozen=True)
class Sensitivity(Estimator):
    """Not an effect on J but how far each component's removal moves the output; see ``output_sensitivity``.

    Args:
        probes: How many draws of signs each pass takes.
        seed: Draws other signs.
    """

    name = "sensitivity"
    rows_per_pass = 8
    probes: int = 1
    seed: int = 0

    def run(self, problem: Problem) -> Estimate:
        timesteps = problem.objective.timesteps
        values = output_sensitivity(
            problem.denoiser, problem.recording, timesteps, problem.space, **self.config(), **problem.keywords()
        )
        return Estimate(values, None, {})

    def cost(self, problem: Problem) -> dict[str, int]:
        passes = len(problem.gradient_plan().passes)
        return {"forward": passes, "backward": passes * self.probes}


def output_sensitivity(
    denoiser: nn.Module,
    recording: Recording,
    timesteps: Window | None,
    space: ComponentSpace,
    *,
    probes: int = Sensitivity.probes,
    seed: int = Sensitivity.seed,
    rows_per_pass: int = Sensitivity.rows_per_pass,
    state: RunState | None = None,
    progress: bool = True,
) -> Tensor:
    """Estimate h_i = E[(w_i v . d output / d w_i)^2] over the recording's rows and random signs v.

    That is the diagonal of the Gauss-Newton matrix of half the squared change of the output, in units of each
    component: to first order, removing component i changes the output's squared L2 norm by h_i. The rows of a pass have
    signs of their own. So the squared gradient of their sum is, in the mean, the sum of their squared gradients (an
    estimate of Hutchinson's kind, arXiv 1906.03193), and a pass and probe give one sample for all components.

    Cost: one forward and ``probes`` backward passes of every ``rows_per_pass`` rows. Fewer rows per pass, or more
    probes, make it more exact.

    Args:
        denoiser: The module whose components are looked at.
        recording: Calls of this denoiser.
        timesteps: The window of the calls. None for all.
        space: The components.
        probes: How many draws of signs each pass takes.
        seed: Draws other signs.
        rows_per_pass: How many rows go through the denoiser at once, at most.
        state: Where the sums are kept. None for nowhere.
        progress: Whether to show a progress bar.

    Returns:
        float32 [n], never negative.

    Raises:
        ValueError: ``probes`` is below 1, or the recording is of another model.
    """
    if probes < 1:
        raise ValueError(f"probes is {probes}, expected at least 1")
    signs = RandomSigns(timesteps)
    passes = plan_passes(recording, signs, rows_per_pass)
    rows = sum(len(numbers) for pieces in passes for _, numbers in pieces)
    squares = _SquaredGradients(denoiser, recording, signs, space, "weight" if space.kind == "weight" else "gate")
    squares.probes, squares.seed = probes, seed
    sums = squares.run(passes, state or RunState(None, {}, resume=False), progress)
    parts = []
    for entry in space.leading:
        mean = sums[entry.module] / (rows * probes)
        if space.kind == "weight":
            mean = (mean * squares.modules[entry.module].weight.detach().float().square()).flatten()
        parts.append(mean.cpu())
    return torch.cat(parts)
