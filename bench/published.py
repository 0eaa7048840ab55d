"""The procedures that were published with CAD and COAR, as they are described, to measure cad_fast against.

They are re-creations for comparison: slow on purpose where the originals are, and of no use for anything else.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cad_fast import Ablation, ComponentSpace, Recording
from cad_fast.attribution.measuring.passes import gather
from cad_fast.attribution.measuring.plans import plan_passes
from cad_fast.objectives import Objective
from cad_fast.row_engine import rows


def cad(pipeline: Any, prompt: str, space: ComponentSpace, steps: int, scale: float, seeds: Sequence[int]) -> Tensor:
    """Scores w dJ/dw float32 [n], the mean over ``steps`` timesteps, number t on a trajectory of its own, of seeds[t].

    arXiv 2412.02542: for timestep number t the latents are sampled anew with t guided calls, the conditional and the
    unconditional output are computed once more, and the loss is differentiated by all parameters of the denoiser.
    Cost: 1 + 2 + ... + steps guided calls and ``steps`` passes forward and backward.
    """
    unet, scheduler = pipeline.unet, pipeline.scheduler
    unet.requires_grad_(True)
    modules = space.modules(unet)
    total = {name: torch.zeros_like(module.weight) for name, module in modules.items()}
    with torch.no_grad():
        positive, negative = pipeline.encode_prompt(prompt, "cpu", 1, True)
        both = torch.cat([negative, positive])
    size, channels = unet.config.sample_size, unet.config.in_channels
    for step in range(steps):
        scheduler.set_timesteps(steps)
        noise = torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(seeds[step]))
        latents = noise * scheduler.init_noise_sigma
        with torch.no_grad():
            for t in scheduler.timesteps[:step]:
                scaled = scheduler.scale_model_input(torch.cat([latents] * 2), t)
                without, with_prompt = unet(scaled, t, encoder_hidden_states=both).sample.chunk(2)
                guided = without + scale * (with_prompt - without)
                latents = scheduler.step(guided, t, latents).prev_sample
            t = scheduler.timesteps[step]
            scaled = scheduler.scale_model_input(latents, t)
            reference = unet(torch.cat([scaled] * 2), t, encoder_hidden_states=both).sample[:1]
        unet.zero_grad(set_to_none=True)
        with torch.enable_grad():
            output = unet(scaled, t, encoder_hidden_states=positive).sample
            (output - reference).square().sum().backward()
        for name, module in modules.items():
            total[name] += module.weight.grad
    unet.zero_grad(set_to_none=True)
    unet.requires_grad_(False)
    parts = [entry.reduce(total[entry.module] * modules[entry.module].weight.detach() / steps) for entry in space]
    return torch.cat([part.flatten() for part in parts])


def coar_seconds(pipeline: Any, recording: Recording, objective: Objective, space: ComponentSpace, times: int) -> float:
    """Seconds per ablation where every pass of the denoiser has one (COAR, arXiv 2404.11534), the mean of ``times``."""
    passes = plan_passes(recording, objective, 64)
    started = time.perf_counter()
    for number in range(times):
        ablation = Ablation.random(space.n, 0.05, number)
        with torch.no_grad(), rows(pipeline.unet, [ablation], space):
            for pieces in passes:
                call = gather(recording, pieces)
                objective(call.run(pipeline.unet), call)
    return (time.perf_counter() - started) / times
