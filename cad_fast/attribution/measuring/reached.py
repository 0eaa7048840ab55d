"""Tell components without an effect from components whose gradients are cut off: both have gradients of zero."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...components.space import ComponentSpace
from ...diffusion.quantised import require_plain
from ...diffusion.structure import Layer
from ...recording.call import DenoiserCall

FACTOR = 1.5
"""What weights are multiplied by to see whether they do anything."""

EFFECT = 1e-6
"""From which relative change of the output on a module has an effect."""


def require_differentiable(modules: Mapping[str, Layer]) -> None:
    """Raise TypeError naming the first module whose weights no gradient can reach: quantised, or stored in 8 bits."""
    for name, module in modules.items():
        require_plain(name, module.weight, "attributed by gradients")


def silent_modules(space: ComponentSpace, totals: Tensor) -> list[str]:
    """Which modules have sums of gradients, of ``totals`` [n], that are zero in all components."""
    return [
        entry.module
        for entry in space.leading
        if not bool(totals[entry.offset : entry.offset + entry.count].count_nonzero())
    ]


@torch.no_grad()
def require_reached(denoiser: nn.Module, call: DenoiserCall, modules: Mapping[str, Layer]) -> None:
    """Raise ValueError when a module has an effect on the output although its gradients came out as zero.

    Some have none: the last block's feed-forward on the text of a joint attention, an expert that no token chose. Those
    are right with scores of zero. Others run without recording gradients, and zeros would be wrong.

    Args:
        denoiser: as it was when the gradients were taken.
        call: what it was run on.
        modules: those with gradients of zero, by path.
    """
    if not modules:
        return
    before = call.run(denoiser).float()

    def acts(some: Mapping[str, Layer]) -> bool:
        with _scaled(some.values()):
            after = call.run(denoiser).float()
        return not bool((after - before).norm() <= EFFECT * before.norm())

    if not acts(modules):
        return
    cut = next((name for name, module in modules.items() if acts({name: module})), next(iter(modules)))
    raise ValueError(
        f"no gradient reaches {cut}, one of {len(modules)} modules, although it changes the output: it runs under "
        "torch.no_grad, on a copy of its weights, or through a hook that cuts gradients off. Its scores would be 0. "
        "Leave it out by target_modules, or use method='regression' or 'exact', which need no gradients"
    )


@contextmanager
def _scaled(modules: Iterable[Layer]) -> Iterator[None]:
    """Within, the modules' weights are multiplied by ``FACTOR``."""
    kept = [(module, module.weight.data) for module in modules]
    try:
        for module, weight in kept:
            module.weight.data = weight * FACTOR
        yield
    finally:
        for module, weight in kept:
            module.weight.data = weight
