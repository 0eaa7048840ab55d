"""Whole denoisers: 16 variants with random feed-forward masks in one pass, against the plain batch and a loop."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

import cad_fast
from cad_fast import Ablation, ComponentSpace

from .linear import require_right
from .shapes import MASK_FRACTION, VARIANTS

MEBIBYTE = 2**20


def embedded() -> tuple[nn.Module, dict[str, Tensor]]:
    """The demo model's UNet at its own size, one row per variant."""
    unet = cad_fast.zoo.load().unet
    return unet, _call(unet, 16)


def stable_diffusion() -> tuple[nn.Module, dict[str, Tensor]]:
    """A UNet of Stable Diffusion 1.4's configuration with random weights, at 32x32 latents."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768).eval().requires_grad_(False)
    return unet, _call(unet, 32)


def _call(unet: nn.Module, size: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = 77 if unet.config.cross_attention_dim == 768 else 16
    return {
        "sample": torch.randn(VARIANTS, unet.config.in_channels, size, size, generator=generator),
        "timestep": torch.full((VARIANTS,), 500),
        "encoder_hidden_states": torch.randn(VARIANTS, tokens, unet.config.cross_attention_dim, generator=generator),
    }


MODELS = {"embedded": embedded, "sd-1.4 config, 32x32": stable_diffusion}


@torch.no_grad()
def measure(name: str, rounds: int) -> dict[str, Any]:
    """Median seconds of a pass over all 16 variants (and of preparing the masks, once for all timesteps), and the
    most memory that a pass adds to what the process holds.
    """
    unet, call = MODELS[name]()
    space = ComponentSpace.of(unet, "weight", "feed-forward")
    ablations = [Ablation.random(space.n, MASK_FRACTION, seed) for seed in range(VARIANTS)]
    samples: dict[str, list[Sample]] = {}

    def plain() -> Tensor:
        return unet(**call).sample

    def turn() -> tuple[Tensor, Tensor]:
        with Sample.of(samples, "plain batch"):
            plain()
        with Sample.of(samples, "preparing the masks"):
            engine = cad_fast.rows(unet, ablations, space)
            engine.__enter__()
        try:
            with Sample.of(samples, "cad_fast"):
                ours = plain()
        finally:
            engine.__exit__(None, None, None)
        with Sample.of(samples, "copy weights, mask, forward"):
            theirs = copy_mask_forward(unet, call, ablations, space)
        return ours, theirs

    require_right(*turn(), torch.float32)  # unmeasured, and a wrong result gets no figure
    samples.clear()
    for _ in tqdm(range(rounds), desc=name, leave=False):
        turn()
    return {
        "seconds": {key: statistics.median(one.seconds for one in taken) for key, taken in samples.items()},
        "peak_mebibytes": {key: max(one.peak for one in taken) / MEBIBYTE for key, taken in samples.items()},
        "masked_weights": space.n,
    }


def copy_mask_forward(
    unet: nn.Module, call: dict[str, Tensor], ablations: list[Ablation], space: ComponentSpace
) -> Tensor:
    """One variant after the other: multiply a copy of the weights into the model, run its row, put the weights back."""
    modules = space.modules(unet)
    originals = {name: module.weight.detach().clone() for name, module in modules.items()}
    outputs = []
    for v, ablation in enumerate(ablations):
        masks = space.split(ablation.mask)
        for name, module in modules.items():
            module.weight.copy_(originals[name] * ~masks[name].view_as(module.weight))
        outputs.append(unet(**{key: value[v : v + 1] for key, value in call.items()}).sample)
    for name, module in modules.items():
        module.weight.copy_(originals[name])
    return torch.cat(outputs)


class Sample:
    """Seconds and peak memory of what happens inside the context."""

    def __init__(self) -> None:
        self.seconds = self.peak = 0.0

    @classmethod
    @contextmanager
    def of(cls, samples: dict[str, list[Sample]], name: str) -> Iterator[None]:
        """Measure what happens inside and append it to ``samples[name]``."""
        sample = cls()
        _reset_peak()
        before, start = _memory("VmRSS"), time.perf_counter()
        yield
        sample.seconds = time.perf_counter() - start
        sample.peak = max(0.0, _memory("VmHWM") - before)
        samples.setdefault(name, []).append(sample)


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _memory(field: str) -> float:
    """Resident bytes now (VmRSS) or at most since the last reset (VmHWM); Linux only."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024.0 * int(line.split()[1])
