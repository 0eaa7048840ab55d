"""ConceptPrune: prune the weights that a concept's prompts use most (arXiv 2405.19237)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cad_fast import zoo
from cad_fast.diffusion.context import generators, plain_tensors, silent


def skilled(weight: Tensor, with_concept: Tensor, without: Tensor, ratio: float) -> Tensor:
    """Which weights of one layer are skilled at one timestep, bool [out, in].

    The importance of a weight is its magnitude times the norm of its input over all tokens (Wanda, arXiv 2306.11695).
    Skilled are those among the int(ratio * in) most important of their row under the concept's prompts which are also
    more important than under the prompts without it. ``with_concept``, ``without``: norms [in].
    """
    target, base = weight.abs() * with_concept, weight.abs() * without
    top = target.argsort(dim=1, descending=True, stable=True)[:, : int(ratio * weight.shape[1])]
    return torch.zeros_like(weight, dtype=torch.bool).scatter_(1, top, True) & (target > base)


def input_norms(pipeline: Any, prompts: list[str], seed: int, modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Per module, the norm of each input over all rows and tokens, float32 [steps, in], while the pipeline samples.

    Every token's input is divided by its own norm first, as in the published script. The rows of both branches of
    guidance count.
    """
    squares: dict[str, list[Tensor]] = {name: [] for name in modules}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            tokens = arguments[0].detach().flatten(0, -2)
            squares[name].append(nn.functional.normalize(tokens, dim=1).square().sum(0))

        return hook

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in modules.items()]
    seeds = [seed + row for row in range(len(prompts))]
    try:
        with plain_tensors(), silent(pipeline):
            settings = {**zoo.generation().to_kwargs(), "output_type": "latent"}
            pipeline(prompt=prompts, generator=generators(seeds), **settings)
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.stack(steps).sqrt() for name, steps in squares.items()}


@dataclass(frozen=True)
class ConceptPrune:
    """ConceptPrune with the published script's settings, scaled to the embedded model.

    The paper's own: the second layers of the feed-forward networks, pairs of prompts that differ in the concept alone,
    the union of the skilled weights over the first timesteps, set to zero.
    Scaled: 10% of each row in place of 1%: rows have 192 and 384 inputs here, where they have 1280 to 5120 there, and
    int(1%) of them is 1 and 3 weights. The first 4 of 20 timesteps in place of 10 of 50. 12 pairs of prompts, the
    object in each style against the style alone. No share from 10% to 80% of the rows erases an object here, nor do
    all timesteps, prompts of the other objects in place of the style, or the published script's other layers.

    Attributes:
        ratio: share of each row that can be skilled at one timestep.
        timesteps: so many of the first are looked at.
        pairs: of pictures, with the concept and without.
        seed: of the first picture, the others count on; the same for both of a pair.
    """

    name: ClassVar[str] = "conceptprune"
    ratio: float = 0.1
    timesteps: int = 4
    pairs: int = 12
    seed: int = 0

    def weights(self, pipeline: Any, concept: str) -> dict[str, Tensor]:
        """See ``Baseline.weights``."""
        modules = {name: each for name, each in pipeline.unet.named_modules() if name.endswith(".ff.net.2")}
        styles = [zoo.STYLES[number % len(zoo.STYLES)] for number in range(self.pairs)]
        norms = [
            input_norms(pipeline, [zoo.caption(each, style) for style in styles], self.seed, modules)
            for each in (concept, None)
        ]
        changed = {}
        for name, module in modules.items():
            weight = module.weight.detach()
            pruned = torch.zeros_like(weight, dtype=torch.bool)
            for step in range(self.timesteps):
                pruned |= skilled(weight, norms[0][name][step], norms[1][name][step], self.ratio)
            changed[f"{name}.weight"] = weight.masked_fill(pruned, 0.0)
        return changed
