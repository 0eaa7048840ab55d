"""First-order attribution: alpha_i = w_i dJ/dw_i at the intact network (arXiv 2412.02542, equation 5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...components.space import ComponentSpace
from ...objectives import Objective
from ...recording.data import Recording
from ..gradients.sums import GradientSums, Via
from ..measuring.plans import plan_passes
from ..store import RunState
from .base import Estimate, Estimator, Problem


@dataclass(frozen=True)
class Gradient(Estimator):
    """alpha_i = w_i dJ/dw_i at the intact network; see ``gradient_scores``.

    Args:
        via: "weight" or "gate"; None for the one that suits the kind of component.
    """

    name = "gradient"
    via: Via | None = None

    def run(self, problem: Problem) -> Estimate:
        return Estimate(gradient_scores(*problem.arguments(), via=self.via, **problem.keywords()), None, {})

    def cost(self, problem: Problem) -> dict[str, int]:
        passes = len(problem.gradient_plan().passes)
        return {"forward": passes, "backward": passes}


def gradient_scores(
    denoiser: nn.Module,
    recording: Recording,
    objective: Objective,
    space: ComponentSpace,
    *,
    via: Via | None = Gradient.via,
    rows_per_pass: int = Gradient.rows_per_pass,
    state: RunState | None = None,
    progress: bool = True,
) -> Tensor:
    """Score components by alpha_i = w_i dJ/dw_i, J being the mean over the recording's rows and active timesteps.

    Args:
        denoiser: The module whose components are scored.
        recording: Calls of this denoiser.
        objective: J.
        space: The components.
        via: "weight" takes the gradient of the weights, summed over a component's weights. "gate" takes that of one
            gate per component: the same numbers for less memory. None for "weight" for single weights, else "gate".
        rows_per_pass: How many rows go through the denoiser at once, at most.
        state: Where the sums are kept. None for nowhere.
        progress: Whether to show a progress bar.

    Returns:
        float32 [n].

    Raises:
        ValueError: The recording is of another model or lacks what the objective needs, or J is not finite.
    """
    via = via or ("weight" if space.kind == "weight" else "gate")
    passes = plan_passes(recording, objective, rows_per_pass)
    rows = sum(len(numbers) for pieces in passes for _, numbers in pieces)
    gradients = GradientSums(denoiser, recording, objective, space, via)
    state = state or RunState(None, {}, resume=False)
    sums = gradients.run(passes, state, progress)
    state.release()
    scores = torch.zeros(space.n)
    for entry in space if via == "weight" else space.leading:  # one gate for all shares of a component
        total = sums.pop(entry.module).div_(rows)
        if via == "weight":
            total = entry.reduce(total.mul_(gradients.modules[entry.module].weight.detach()))
        scores[entry.offset : entry.offset + entry.count] += total  # two modules may share components
    return scores
