"""ESD-x: fine-tune the cross-attention away from a concept (arXiv 2303.07345)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from cad_fast import record, zoo
from cad_fast.diffusion.context import plain_tensors
from cad_fast.recording.call import DenoiserCall

CROSS_ATTENTION = "attn2"


def esd_target(call: DenoiserCall, negative_guidance: float) -> Tensor:
    """The output to train towards: the unconditional one, less ``negative_guidance`` times what the prompt adds.

    The paper's equation 7, of the outputs of the intact network [B, ...].
    """
    assert call.output is not None and call.unconditional_output is not None
    return call.unconditional_output - negative_guidance * (call.output - call.unconditional_output)


def esd_loss(output: Tensor, call: DenoiserCall, negative_guidance: float) -> Tensor:
    """The mean squared error of the network in training, a scalar."""
    return torch.nn.functional.mse_loss(output, esd_target(call, negative_guidance))


@dataclass(frozen=True)
class EsdX:
    """ESD-x with the paper's settings, scaled to the embedded model.

    The paper's own: all linear layers of the cross-attention, negative guidance 1, Adam, latents that the intact
    network made on the way under guidance 3, the concept's plain name as the prompt.
    Scaled: 200 iterations at a learning rate of 5e-4 in place of 1,000 at 1e-5. The embedded model was trained at
    1.5e-3 where Stable Diffusion was at 1e-4, and 300 at 2e-4 left most of the dogs. Eight latents per iteration in
    place of one, drawn from 24 recorded trajectories of 20 steps in place of a new one of 50 each time: sampling would
    take most of the time.

    Attributes:
        iterations: steps of Adam.
        learning_rate: of Adam.
        negative_guidance: how far beyond the unconditional output to train.
        trajectories: how many are recorded.
        batch_size: latents per iteration, all at one timestep.
        seed: of the trajectories and of what is drawn from them.
    """

    name: ClassVar[str] = "esd-x"
    iterations: int = 200
    learning_rate: float = 5e-4
    negative_guidance: float = 1.0
    trajectories: int = 24
    batch_size: int = 8
    seed: int = 0

    def weights(self, pipeline: Any, concept: str) -> dict[str, Tensor]:
        """See ``Baseline.weights``."""
        prompts = [zoo.caption(concept)] * self.trajectories
        recording = record(pipeline, prompts, seeds=self.seed, progress=False, **zoo.generation().to_kwargs())
        trained = copy.deepcopy(pipeline.unet).requires_grad_(False)
        parameters = {name: value for name, value in trained.named_parameters() if CROSS_ATTENTION in name.split(".")}
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        optimizer = torch.optim.Adam(parameters.values(), lr=self.learning_rate)
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.iterations):
            step = int(torch.randint(len(recording.calls), (), generator=generator))
            rows = torch.randperm(self.trajectories, generator=generator)[: self.batch_size]
            call = recording.calls[step].select_rows(rows)
            optimizer.zero_grad()
            with torch.enable_grad():
                esd_loss(call.run(trained), call, self.negative_guidance).backward()
            optimizer.step()
        with plain_tensors():
            return {name: value.detach().clone() for name, value in parameters.items()}
