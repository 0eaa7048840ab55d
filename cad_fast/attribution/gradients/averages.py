"""Averages of gradients over ablated networks: the scores they give, with their errors.

With k_i the mean gradient of a component over the ablations that keep it, and a_i over those that remove it, the score
is

    alpha_i = (1 - w) k_i + w a_i.

w = 1/2 is the trapezoid rule for the effect of removing i. But a balanced partition removes every component just once,
so that a_i has the noise of a single gradient. Where J hardly bends along one component (single weights), k_i and a_i
estimate the same, and a smaller w is better. It is chosen for the least mean squared error over all components.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...components.ablation import Ablation
from ...components.space import ComponentSpace
from ...row_engine.engine import RowEngine
from ..measuring.reached import silent_modules


@dataclass(frozen=True)
class Averaged:
    """Scores from averages of gradients.

    Args:
        values: float32 [n].
        standard_error: float32 [n], for the choice of ablations, not for that of pictures. None for a single group.
        ablated_weight: w.
        reliability: From 0 to 1, the share of the scores' variance that is not noise of the chosen ablations. That is
            the expected correlation with the scores of other ablations, as many. None for a single group.
    """

    values: Tensor
    standard_error: Tensor | None
    ablated_weight: float
    reliability: float | None


class Averages:
    """Per component, gradients summed over the ablations that keep it and over those that remove it.

    Groups of ablations are exchangeable, as they are drawn at random, so their spread tells the error. ``tensors`` are
    float32 [n]:

    - "kept" and "ablated": the two sums;
    - "group": the kept ones of the ablations that run now;
    - "squares": the sum over finished groups of group^2 / (ablations in it that keep the component);
    - "groups": how many groups kept it.

    Args:
        space: The components.
        denoiser: The module that they are of. The sums go where its weights are.
        before: ``tensors`` of a run that was stopped; or empty.
    """

    KEYS = ("kept", "ablated", "group", "squares", "groups")

    def __init__(self, space: ComponentSpace, denoiser: nn.Module, before: dict[str, Tensor]) -> None:
        self.space = space
        device = next(iter(space.modules(denoiser).values())).weight.device
        before = before or {key: torch.zeros(space.n) for key in self.KEYS}
        self.tensors = {key: tensor.to(device) for key, tensor in before.items()}

    def add(self, engine: RowEngine, j: Tensor, group: Sequence[Ablation]) -> None:
        """Add the gradients of J, a scalar, at the ablations of the group."""
        if self.space.kind == "weight":
            engine.reset_scores()
            j.backward()
            kept, ablated = (
                torch.cat([parts[entry.module].flatten() for entry in self.space])
                for parts in (engine.kept, engine.ablated)
            )
        else:
            gates = [engine.gates[entry.module] for entry in self.space.leading]
            gradients = torch.autograd.grad(j, gates, allow_unused=True)
            filled = [torch.zeros_like(gate) if g is None else g for gate, g in zip(gates, gradients, strict=True)]
            whole = torch.cat(filled, 1).float()
            removed = torch.stack([ablation.mask for ablation in group]).to(whole.device)
            kept, ablated = torch.where(removed, 0, whole).sum(0), torch.where(removed, whole, 0).sum(0)
        self.tensors["kept"] += kept
        self.tensors["ablated"] += ablated
        self.tensors["group"] += kept

    def silent(self) -> list[str]:
        """The modules whose gradients were zero at every ablation."""
        return silent_modules(self.space, self.tensors["kept"].abs() + self.tensors["ablated"].abs())

    def close(self, group: Sequence[Ablation]) -> None:
        """Finish a group that has seen all passes: its spread counts from now on."""
        total = self.tensors["group"]
        count = torch.full_like(total, len(group))
        for ablation in group:
            count[ablation.indices.to(total.device)] -= 1
        self.tensors["squares"] += total.square() / count.clamp(min=1)
        self.tensors["groups"] += (count > 0).float()
        total.zero_()

    def averaged(self, kept: int, ablated: int, rows: int, weight: float | None = None) -> Averaged:
        """Make scores of the sums.

        Args:
            kept: How many ablations kept each component.
            ablated: How many removed it.
            rows: How many rows each gradient is the sum of.
            weight: w, or None for the least mean squared error. With one group the noise is unknown, and w is 1/2.
        """
        k, a = self.tensors["kept"] / kept, self.tensors["ablated"] / ablated
        freedom = self.tensors["groups"] - 1
        if float(freedom.min()) < 1:
            weight = 0.5 if weight is None else weight
            return Averaged(((1 - weight) * k + weight * a).cpu() / rows, None, weight, None)
        variance = (self.tensors["squares"] - self.tensors["kept"].square() / kept).clamp(min=0) / freedom
        if weight is None:
            weight = _best_weight(k, a, float(variance.double().mean()), kept, ablated)
        values = (1 - weight) * k + weight * a
        error = variance * ((1 - weight) ** 2 / kept + weight**2 / ablated)
        spread = float(values.double().var(correction=0))
        reliability = max(0.0, 1 - float(error.double().mean()) / spread) if spread > 0 else 0.0
        return Averaged(values.cpu() / rows, error.sqrt().cpu() / rows, weight, reliability)


def _best_weight(k: Tensor, a: Tensor, variance: float, kept: int, ablated: int) -> float:
    """Return the w in 0..1/2 of least (1/2 - w)^2 C + variance ((1-w)^2 / kept + w^2 / ablated).

    C = E (E a - E k)^2 is the mean square of a - k less its noise.
    """
    square = float((a - k).double().square().mean())
    if square == 0:
        return 0.5
    noise = variance * (1 / kept + 1 / ablated)
    bend = max(0.0, square - noise)
    return min(0.5, (bend / 2 + variance / kept) / (bend + noise)) if bend + noise > 0 else 0.5


def more_passes(reliability: float, times: float) -> float:
    """Return the reliability that ``times`` as many passes would have (Spearman 1910, Brown 1910)."""
    return times * reliability / (1 + (times - 1) * reliability)
