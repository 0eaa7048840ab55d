"""What a denoiser is made of, as a table: which layer is what, in which presets, with how many components."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from ..diffusion.denoisers import denoiser_of
from ..diffusion.layers import PRESETS, presets_of
from ..diffusion.structure import base_modules, layer_roles


@dataclass(frozen=True)
class LayerInfo:
    """One linear or convolution of a denoiser.

    Attributes:
        module: its path.
        role: what it is, in words.
        presets: the values of ``target_modules`` that it is in, but for "all".
        weights: how many it has.
        neurons: hidden units of a feed-forward that it reads, 0 if it reads none.
        heads: heads of an attention that it reads, 0 if it reads none.
        filters: output channels of a convolution, 0 of a linear.
        shares_heads_of: the module whose heads it reads the text's share of, or None.
    """

    module: str
    role: str
    presets: tuple[str, ...]
    weights: int
    neurons: int
    heads: int
    filters: int
    shares_heads_of: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "presets": list(self.presets)}


def inspect_layers(pipeline: Any) -> list[LayerInfo]:
    """Say what each linear and 2-D convolution of a denoiser is, in the model's order.

    Args:
        pipeline: a diffusers pipeline, a ``PipelinePart`` or the denoiser.

    Returns:
        One entry for each.

    Raises:
        TypeError: there is no denoiser.
    """
    denoiser = denoiser_of(pipeline)
    modules, table = base_modules(denoiser), []
    for name, role in layer_roles(denoiser).items():
        module = modules[name]
        linear = isinstance(module, nn.Linear)
        table.append(
            LayerInfo(
                name,
                str(role),
                presets_of(role, module),
                module.weight.numel(),
                role.hidden[1] - role.hidden[0] if role.hidden and linear else 0,
                (role.heads[1] - role.heads[0]) // role.head_width if role.heads and linear else 0,
                0 if linear else module.weight.shape[0],
                role.with_heads_of,
            )
        )
    return table


def count_presets(table: Iterable[LayerInfo]) -> dict[str, dict[str, int]]:
    """Per preset that matches something: its modules, weights, neurons, heads and filters. Shared heads count once."""
    counts: dict[str, dict[str, int]] = {}
    for layer in table:
        for preset in (*layer.presets, "all"):
            count = counts.setdefault(preset, dict.fromkeys(("modules", "weights", "neurons", "heads", "filters"), 0))
            count["modules"] += 1
            count["weights"] += layer.weights
            count["neurons"] += layer.neurons
            count["heads"] += 0 if layer.shares_heads_of else layer.heads
            count["filters"] += layer.filters
    return {preset: counts[preset] for preset in PRESETS if preset in counts}
