"""CAD-Erase by the published rule (arXiv 2412.02542): first-order scores, the top of each feed-forward row removed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from bench import published
from cad_fast import ComponentSpace, Edit, Scores, Selection, zoo


@dataclass(frozen=True)
class Cad:
    """CAD-Erase as published, scaled to the embedded model.

    The paper's own: every weight of the feed-forward layers, J the squared distance from the unconditional output at
    all timesteps, each on a trajectory of its own, the top of each row set to zero (``Selection(compat="paper")``).
    Scaled: 10% of each row in place of 0.1%: rows have 48 to 384 weights here, and int(0.1%) of them is none. 20
    timesteps at guidance 3, the embedded model's own, in place of 50 at 7.5.

    Attributes:
        ratio: share of each row to remove.
        seed: of the first trajectory, the others count on.
    """

    name: ClassVar[str] = "cad"
    ratio: float = 0.1
    seed: int = 0

    def weights(self, pipeline: Any, concept: str) -> dict[str, Tensor]:
        """See ``Baseline.weights``."""
        space = ComponentSpace.of(pipeline, "weight", "feed-forward")
        steps, scale = zoo.generation().num_inference_steps, zoo.generation().guidance_scale
        assert steps is not None and scale is not None, "the zoo's generation says both"
        seeds = range(self.seed, self.seed + steps)
        scores = Scores(published.cad(pipeline, zoo.caption(concept), space, steps, scale, seeds), space)
        edit = Edit.from_scores(scores, Selection(self.ratio, compat="paper"), name=concept)
        with edit.applied(pipeline):
            return {
                f"{name}.weight": pipeline.unet.get_submodule(name).weight.detach().clone() for name in edit.components
            }
