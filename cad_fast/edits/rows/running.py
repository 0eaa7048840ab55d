"""The call of a pipeline that is being made: found on the stack, so that the pipeline stays as it is."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import Tensor

CONDITIONAL_FIRST = frozenset(
    {"DiTPipeline", "LuminaPipeline", "LuminaText2ImgPipeline", "OmniGenPipeline"}
    | {"StableCascadePriorPipeline", "StableCascadeDecoderPipeline", "StableCascadeCombinedPipeline"}
)
"""diffusers' pipelines that put the conditional rows of a batch before the unconditional ones; all others do not."""


@dataclass(frozen=True, eq=False)
class RunningCall:
    """A call of a pipeline that this thread is in.

    Attributes:
        frame_id: tells calls apart that are being made at once.
        timesteps: what the scheduler was last told to go through. Every run gets a new object.
        samples: how many samples are drawn, as far as the call has them as its ``latents``.
        guided: whether guidance is on, as far as the pipeline says so.
        negative: the tensors that the call has by names of negative prompts.
        conditional_first: whether the pipeline is one of those that put the conditional rows of a batch first.
        conditional: whether the denoiser's present call is conditional, as the guider of a modular pipeline says, which
            calls the denoiser once for each branch. None without a guider.
    """

    frame_id: int
    timesteps: Any
    samples: int | None
    guided: bool | None
    negative: tuple[Tensor, ...] = ()
    conditional_first: bool = False
    conditional: bool | None = None

    @classmethod
    def of(cls, pipeline: Any) -> RunningCall | None:
        """The call of ``pipeline`` on this thread's stack that runs its denoiser; None if there is none.

        That is the innermost ``__call__``: a subclass may prepare something first, and has locals of its own. Without
        one it is the outermost method.
        """
        frame: FrameType | None = sys._getframe(1)
        running = None
        while frame is not None:
            code = frame.f_code
            if code.co_argcount and code.co_varnames[0] == "self" and frame.f_locals.get("self") is pipeline:
                running = frame
                if code.co_name == "__call__":
                    break
            frame = frame.f_back
        if running is None:
            return None
        names = running.f_locals
        latents = names.get("latents")
        samples = len(latents) if isinstance(latents, Tensor) and latents.ndim > 1 else None
        guided = getattr(pipeline, "do_classifier_free_guidance", names.get("do_classifier_free_guidance"))
        timesteps = getattr(getattr(pipeline, "scheduler", None), "timesteps", None)
        negative = [value for name, value in names.items() if "negative" in name or "uncond" in name]
        return cls(
            id(running),
            timesteps,
            samples,
            guided if isinstance(guided, bool) else None,
            tuple(value for value in negative if isinstance(value, Tensor) and value.ndim > 1),
            any(kind.__name__ in CONDITIONAL_FIRST for kind in type(pipeline).__mro__),
            _told_by_guider(pipeline),
        )

    def same_run(self, other: RunningCall) -> bool:
        """Whether both are of one run.

        Raises:
            ValueError: it cannot be told.
        """
        if self.frame_id != other.frame_id or self.timesteps is not other.timesteps:
            return False
        if self.timesteps is None:  # a frame's number may come again
            raise ValueError(
                "the pipeline's scheduler has no timesteps, so it cannot be told where a run begins and which call of "
                "the denoiser is conditional: use branch='both'"
            )
        return True


def _told_by_guider(pipeline: Any) -> bool | None:
    guider = getattr(pipeline, "guider", None)
    conditional = getattr(guider, "is_conditional", None)
    return conditional if isinstance(conditional, bool) else None
