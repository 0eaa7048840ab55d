"""Objectives: J, one number per row of the denoiser's output, says how strongly a concept is expressed."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .diffusion.timesteps import TimestepWindow, Window
from .recording.call import DenoiserCall
from .recording.data import Recording
from .recording.record import with_base

REMEDIES = {
    "unconditional_output": (
        "it was made without classifier-free guidance, which guidance-distilled models and a guidance scale of 1 do "
        "not use. Record with a higher guidance_scale (or true_cfg_scale), or compare with a base prompt: with_base "
        "and ConceptErasure(base='base'). ConceptErasure() does so itself where the pipeline is given, not the denoiser"
    ),
    "base_output": "it was made without a base prompt. Add it: with_base(recording, pipeline, base_prompts)",
    "target": "it was made by generating. Make one for a denoising loss: record_images or renoise",
}


# What stands for the unconditional output where there is none: what guidance would have used without a negative prompt.
BASE_PROMPT = ""

log = logging.getLogger(__name__)


class Objective(ABC):
    """One number per row of a denoiser's output.

    A subclass gives ``name`` and ``value``, and in ``needs`` the output that a call must hold for it.

    Args:
        timesteps: The window that ``call.timestep`` must be in, both ends included: a TimestepWindow, or two timesteps
            in either order. None for all.

    Raises:
        TypeError, ValueError: It is no window.
    """

    name: str
    needs: str | None = None
    both_branches: bool = False
    """Whether the unconditional output is that of the denoiser at hand too, and gradients flow to it."""

    def __init__(self, timesteps: Window | None = None) -> None:
        self.timesteps = TimestepWindow.of(timesteps)

    def active(self, call: DenoiserCall) -> bool:
        """Return whether the call's timestep is in the window (of every row, where they differ)."""
        return self.timesteps is None or self.timesteps.contains(call.timestep)

    def check(self, recorded: Recording | DenoiserCall) -> None:
        """Require what the objective needs of a recording or a call.

        Raises:
            ValueError: A call lacks an output, or none is in the window. The message says how to mend it.
        """
        calls = recorded.calls if isinstance(recorded, Recording) else [recorded]
        for call in calls:
            if self.active(call) and self.needs is not None and getattr(call, self.needs) is None:
                raise ValueError(
                    f"{self.name} needs {self.needs}, which the recording lacks at step {call.step}: "
                    f"{REMEDIES[self.needs]}"
                )
        if isinstance(recorded, Recording) and not any(self.active(call) for call in calls):
            raise ValueError(
                f"{self.name} looks at timesteps {self.timesteps}, but the recording's are {recorded.timesteps}"
            )

    def against_base(self) -> Objective | None:
        """Return the same objective against the output for a base prompt, for recordings made with guidance off.

        None where the objective does not leave the choice of its base to the recording.
        """
        return None

    def __call__(self, output: Tensor, call: DenoiserCall) -> Tensor:
        """Return J of an output of the denoiser. Gradients flow to ``output`` only.

        To run a row under several ablations, repeat it with ``call.select_rows``.

        Args:
            output: [R, ...].
            call: The R rows that it is of.

        Returns:
            float32 [R].

        Raises:
            ValueError: The call lacks what is needed, the rows differ, or J is NaN or infinite.
        """
        self.check(call)
        if output.ndim < 1 or len(output) != call.rows:
            raise ValueError(
                f"{self.name}: the output has shape {list(output.shape)}, but the call has {call.rows} rows; "
                "repeat its rows by call.select_rows"
            )
        return check_finite(self.value(output, call), self, call)

    @abstractmethod
    def value(self, output: Tensor, call: DenoiserCall) -> Tensor:
        """Return J float32 [R], unchecked."""

    def config(self) -> dict[str, Any]:
        """Return the objective as JSON, for ``objective_from_config``."""
        return {"name": self.name, "timesteps": None if self.timesteps is None else self.timesteps.to_list()}

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.config().items() if key != "name")
        return f"{type(self).__name__}({arguments})"


def check_finite(values: Tensor, objective: Objective, call: DenoiserCall) -> Tensor:
    """Return ``values`` [R] unchanged.

    Raises:
        ValueError: Some are NaN or infinite. The message names the objective, the step and the rows.
    """
    finite = torch.isfinite(values.detach())
    if not bool(finite.all()):
        rows = (~finite).nonzero().flatten().tolist()
        shown = ", ".join(map(str, rows[:8])) + (" and more" if len(rows) > 8 else "")
        raise ValueError(
            f"{objective.name} is {values.detach()[rows[0]].item()} at step {call.step} "
            f"(timestep {call.timestep}) in row {shown}: the denoiser's output overflowed or was not a number"
        )
    return values


def squared_distance(output: Tensor, reference: Tensor, call: DenoiserCall) -> Tensor:
    """Return the squared differences float32 [R, elements] of the predictions, without learned variances."""
    reference = reference.to(output.device)
    output, reference = call.prediction(output).float(), call.prediction(reference).float()
    if output.shape != reference.shape:
        raise ValueError(f"the output has shape {list(output.shape)}, its reference {list(reference.shape)}")
    return (output - reference).square().flatten(1)


class ConceptErasure(Objective):
    """J = squared L2 distance of the conditional output from the unconditional one, or from that of a base prompt.

    The sum over all elements, in float32, with the reference held fixed (arXiv 2412.02542).

    Args:
        base: "unconditional", which needs a recording with classifier-free guidance, or "base", which needs
            ``with_base``. None leaves it to the recording: "unconditional", and with guidance off "base" (see
            ``fitted``).
        timesteps: As for ``Objective``.
        negative_guidance: With g above 0 the reference lies beyond the base, away from the recorded output:
            base - g * (output - base), the target of ESD (arXiv 2303.07345). J is then lowest where the concept is
            steered away from, not merely absent.
        both_branches: Whether the reference is not fixed but the unconditional output of the same, ablated, network.
            J is then what guidance will see. It costs as many rows again, and goes with no base prompt and no negative
            guidance.

    Raises:
        ValueError: ``base`` is another, or ``negative_guidance`` is negative or not finite.
    """

    name = "concept_erasure"

    def __init__(
        self,
        base: str | None = None,
        timesteps: Window | None = None,
        negative_guidance: float = 0.0,
        both_branches: bool = False,
    ) -> None:
        # Of both branches one is the unconditional one.
        self.chooses_base = base is None and not both_branches
        base = "unconditional" if base is None else base
        if base not in ("unconditional", "base"):
            raise ValueError(f"{self.name}: base is {base!r}, expected 'unconditional' or 'base'")
        if not 0 <= negative_guidance < math.inf:
            raise ValueError(f"{self.name}: negative_guidance is {negative_guidance}, expected at least 0, finite")
        if both_branches and (base != "unconditional" or negative_guidance):
            raise ValueError(f"{self.name}: both_branches goes with the unconditional base and no negative_guidance")
        super().__init__(timesteps)
        self.both_branches = bool(both_branches)
        self.base = base
        self.negative_guidance = float(negative_guidance)
        self.needs = f"{base}_output"

    def against_base(self) -> ConceptErasure | None:
        return ConceptErasure("base", self.timesteps, self.negative_guidance) if self.chooses_base else None

    def check(self, recorded: Recording | DenoiserCall) -> None:
        """As ``Objective.check``; negative guidance needs the recorded output too."""
        super().check(recorded)
        calls = recorded.calls if isinstance(recorded, Recording) else [recorded]
        if self.negative_guidance and any(call.output is None for call in calls if self.active(call)):
            raise ValueError(f"{self.name}: negative_guidance needs the recorded output, which the recording lacks")

    def value(self, output: Tensor, call: DenoiserCall) -> Tensor:
        reference = getattr(call, str(self.needs))
        if self.negative_guidance:
            assert call.output is not None
            reference = torch.lerp(reference.float(), call.output.float(), -self.negative_guidance)
        return squared_distance(output, reference if self.both_branches else reference.detach(), call).sum(1)

    def config(self) -> dict[str, Any]:
        return {
            **super().config(),
            "base": self.base,
            "negative_guidance": self.negative_guidance,
            "both_branches": self.both_branches,
        }


class DenoisingLoss(Objective):
    """J = MINUS the mean squared error of the output to ``call.target``, in float32.

    Minus makes J grow when the concept is drawn better: as everywhere, the presence of a positive component raises J.
    A component whose removal raises J (lowers the loss) stands in the concept's way, and its score is negative.
    """

    name = "denoising_loss"
    needs = "target"

    def value(self, output: Tensor, call: DenoiserCall) -> Tensor:
        assert call.target is not None
        return -squared_distance(output, call.target.detach(), call).mean(1)


class CallableObjective(Objective):
    """J by a function of the user's.

    Args:
        fn: ``fn(output [R, ...], call) -> [R]``, differentiable for methods of gradients.
        name: What to call it in scores and errors.
        timesteps: As for ``Objective``.
        needs: What its calls must hold: "unconditional_output", "base_output" or "target". None for nothing.

    Raises:
        TypeError: ``fn`` is no function, or returns something else than a tensor when it is called.
        ValueError: ``needs`` is unknown, or the function returns something else than one number per row.
    """

    def __init__(
        self,
        fn: Callable[[Tensor, DenoiserCall], Tensor],
        name: str,
        timesteps: Window | None = None,
        needs: str | None = None,
    ) -> None:
        if not callable(fn):
            raise TypeError(f"the objective {name!r} got a {type(fn).__name__}, expected a function")
        if needs is not None and needs not in REMEDIES:
            raise ValueError(f"the objective {name!r} needs {needs!r}; it can need one of {', '.join(REMEDIES)}")
        self.name = name
        super().__init__(timesteps)
        self.fn = fn
        self.needs = needs

    def value(self, output: Tensor, call: DenoiserCall) -> Tensor:
        values = self.fn(output, call)
        if not isinstance(values, Tensor):
            raise TypeError(f"the objective {self.name!r} returned a {type(values).__name__}, expected a tensor [rows]")
        if values.shape != (len(output),):
            raise ValueError(
                f"the objective {self.name!r} returned shape {list(values.shape)}, "
                f"expected [{len(output)}]: one number per row"
            )
        return values.float()

    def config(self) -> dict[str, Any]:
        return {**super().config(), "name": "callable", "function": self.name, "needs": self.needs}


def fitted(
    objective: Objective, recording: Recording, pipeline: Any = None, *, progress: bool = False
) -> tuple[Objective, Recording]:
    """Return an objective and a recording that go together: with guidance off there is no unconditional output.

    An objective that leaves its base to the recording is then measured against the outputs for a base prompt: those
    that the recording has, or else those for the empty prompt, which ``pipeline`` adds. A warning is logged. Whatever
    else a recording lacks, ``Objective.check`` says.

    Cost: where outputs are added, one evaluation of the denoiser for every recorded call.

    Args:
        objective: J.
        recording: What J is measured on.
        pipeline: What it was recorded with. Without it, or with its denoiser alone, no outputs are added.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: Outputs are to be added, and the recording is of another model, or could not keep an argument.
    """
    against_base = objective.against_base()
    calls = [call for call in recording.calls if objective.active(call)]
    if against_base is None or all(call.unconditional_output is not None for call in calls):
        return objective, recording
    if any(call.base_output is None for call in calls):
        if pipeline is None or isinstance(pipeline, nn.Module):
            return objective, recording
        recording = with_base(recording, pipeline, BASE_PROMPT, progress=progress)
    say_base(objective, recording)
    return against_base, recording


def say_base(objective: Objective, recording: Recording) -> None:
    """Log what an objective compares with in place of the unconditional output."""
    texts = dict.fromkeys(recording.base_prompts or ())
    shown = " or ".join(repr(text) if text else "the empty prompt" for text in list(texts)[:3]) or "the base prompt"
    more = ", and others" if len(texts) > 3 else ""
    log.warning("guidance is off: %s compares with the output for %s%s", objective.name, shown, more)


def objective_from_config(config: Mapping[str, Any]) -> Objective:
    """Make the objective that ``config()`` described. A window of timesteps is read in either order.

    Raises:
        ValueError: The name or an entry is unknown, or the objective is a user's function, which cannot be stored.
    """
    arguments = dict(config)
    name = arguments.pop("name", None)
    if name == "callable":
        raise ValueError(
            f"the objective is the function {arguments.get('function')!r}, which cannot be read from a file: "
            "pass CallableObjective(fn, name) again"
        )
    known = {kind.name: kind for kind in (ConceptErasure, DenoisingLoss)}
    if name not in known:
        raise ValueError(f"unknown objective {name!r}, expected one of {', '.join(known)}")
    try:
        return known[name](**arguments)
    except TypeError as error:
        raise ValueError(f"the objective {name} does not fit its settings {arguments}: {error}") from error
