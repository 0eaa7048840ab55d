"""A UNet of Stable Diffusion 1.5's size with random weights, built where it runs; tiny in a dry run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from ..edits import SD_WEIGHTS
from ..shapes import VARIANTS
from .worker import Worker

TOKENS = 77
TINY: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (32, 32),
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}


@dataclass(frozen=True)
class Model:
    """The UNet, and a batch for it with a row per variant."""

    unet: nn.Module
    batch: dict[str, Tensor]
    edited_weights: int
    """How many weights an edit names."""

    def output(self) -> Tensor:
        return self.unet(**self.batch).sample

    def row(self, number: int) -> dict[str, Tensor]:
        """One row of the batch, alone."""
        return {name: value[number : number + 1] for name, value in self.batch.items()}


def build(worker: Worker) -> Model:
    torch.manual_seed(0)
    with worker.device:
        if worker.dry:
            unet = UNet2DConditionModel(**TINY)
        else:
            unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    unet = unet.to(worker.dtype()).eval().requires_grad_(False)
    draw_weights(unet, worker.device)
    return Model(unet, batch_for(unet, VARIANTS, worker), 100 if worker.dry else SD_WEIGHTS)


@torch.no_grad()
def draw_weights(unet: nn.Module, device: torch.device) -> None:
    """Draw all weights here: a model library may leave them as they lie in memory, such as all zero."""
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in unet.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, (3 * parameter[0].numel()) ** -0.5, generator=generator)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def batch_for(unet: nn.Module, rows: int, worker: Worker, seed: int = 0) -> dict[str, Tensor]:
    """Random samples and texts for so many rows."""
    generator = torch.Generator(worker.device).manual_seed(seed)
    size, width = unet.config.sample_size, unet.config.cross_attention_dim

    def normal(*shape: int) -> Tensor:
        return torch.randn(rows, *shape, generator=generator, device=worker.device).to(worker.dtype())

    return {
        "sample": normal(unet.config.in_channels, size, size),
        "timestep": torch.full((rows,), 500, device=worker.device),
        "encoder_hidden_states": normal(TOKENS, width),
    }


def distance(a: Tensor, b: Tensor) -> float:
    """The norm of the difference by that of `b`."""
    return float((a.float() - b.float()).norm() / b.float().norm().clamp(min=1e-9))
