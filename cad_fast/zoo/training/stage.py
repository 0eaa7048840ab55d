"""A training loop that averages the weights and continues from its last checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from ...files import write_whole

CHECKPOINT_EVERY = 250


@dataclass(frozen=True)
class Recipe:
    """Steps, batch size and peak learning rate of one stage."""

    steps: int
    batch: int
    lr: float
    warmup: int = 200


def share_of_peak(recipe: Recipe, step: int) -> float:
    """Linear warm-up, constant until 40% of the steps, then a cosine to 1% of the peak learning rate."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    progress = max(0.0, (step / recipe.steps - 0.4) / 0.6)
    return 0.01 + 0.99 * 0.5 * (1 + torch.cos(torch.tensor(progress * torch.pi)).item())


def _generator(seed: int, step: int) -> torch.Generator:
    """Each step draws from its own generator, so that a resumed run sees the same batches."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


Trained = TypeVar("Trained", bound=nn.Module)


class Stage(Generic[Trained]):
    """A training loop with an EMA of the weights and a checkpoint file from which it continues.

    Args:
        name: Names the checkpoint file and the progress bar.
        module: What is trained.
        recipe: For how long, and with which batch and learning rate.
        work: The folder of the checkpoint.
        optimizers: What moves the weights, each at the learning rate that it was made with as its peak.
            AdamW at the recipe's learning rate by default.
        weight_decay: Of that AdamW.
    """

    def __init__(
        self,
        name: str,
        module: Trained,
        recipe: Recipe,
        work: Path,
        *,
        optimizers: Sequence[Optimizer] = (),
        weight_decay: float = 0.01,
    ) -> None:
        self.name, self.module, self.recipe = name, module, recipe
        self.path = work / f"{name}.pt"
        self.ema = copy.deepcopy(module).requires_grad_(False)
        self.optimizers = list(optimizers) or [
            torch.optim.AdamW(module.parameters(), lr=recipe.lr, weight_decay=weight_decay)
        ]
        self.peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.step = 0
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            self.step = state["step"]
            self.module.load_state_dict(state["module"])
            self.ema.load_state_dict(state["ema"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)

    def save(self) -> None:
        state = {
            "step": self.step,
            "module": self.module.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        write_whole(self.path, lambda part: torch.save(state, part))

    def _set_learning_rate(self) -> None:
        share = share_of_peak(self.recipe, self.step)
        for optimizer, peaks in zip(self.optimizers, self.peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * share

    def _update_ema(self) -> None:
        decay = min(0.999, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.module.parameters()), 1 - decay)
            for mine, theirs in zip(self.ema.buffers(), self.module.buffers(), strict=True):
                mine.copy_(theirs)

    def run(self, loss: Callable[[torch.Generator, int], Tensor], seed: int) -> Trained:
        """Minimise ``loss(generator, step)`` for the recipe's steps; returns the averaged module in eval mode."""
        bar = tqdm(total=self.recipe.steps, initial=self.step, desc=self.name, mininterval=5)
        average = None
        while self.step < self.recipe.steps:
            self._set_learning_rate()
            value = loss(_generator(seed, self.step), self.step)
            if not torch.isfinite(value):
                raise FloatingPointError(f"{self.name}: the loss is {value.item()} at step {self.step}")
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
            self.step += 1
            self._update_ema()
            average = value.item() if average is None else 0.98 * average + 0.02 * value.item()
            bar.update()
            bar.set_postfix(loss=f"{average:.4f}", refresh=False)
            if self.step % CHECKPOINT_EVERY == 0 or self.step == self.recipe.steps:
                self.save()
        bar.close()
        return self.ema.eval()
