"""What an edit will do to concepts, as their scores predict it, and which concepts share components."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..attribution.measuring.measurer import Measurer
from ..attribution.measuring.plans import Target
from ..attribution.scores import Scores
from ..components.ablation import Ablation
from ..diffusion.denoisers import denoiser_of
from ..diffusion.timesteps import Window
from ..objectives import Objective, fitted, squared_distance
from ..recording.call import DenoiserCall
from ..recording.data import Recording
from .data import EditData
from .selection import Selection, Sign, select


@dataclass(frozen=True)
class Damage:
    """The predicted change of a concept's J under an edit.

    ``change`` in units of J; ``relative`` to J of the intact network (-1: nothing is left of it; None where the scores
    do not know it). ``standard_error`` of ``change`` from those of the scores taken as independent, None without them.
    """

    change: float
    relative: float | None
    standard_error: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def predicted_damage(
    edit: EditData | Tensor, scores: Mapping[str, Scores], *, strength: float = 1.0, factor: float | None = None
) -> dict[str, Damage]:
    """Per concept, the change of J that its scores predict for an edit, most damaged first.

    ``edit``: an Edit, or component numbers int64 [k] over the scores' own spaces (then with ``factor``, 0 by default).
    First-order scores overshoot for many components at once, and predictions below -1 say no more than "all of it":
    they rank concepts rather than measure them.
    Raises ValueError naming the concept whose scores are of another model, another kind or lack modules of the edit.
    """
    if not scores:
        raise ValueError("predicted_damage needs the scores of at least one concept")
    found = {}
    for concept, own in scores.items():
        own.require_finite()
        indices = edit if isinstance(edit, Tensor) else _components(edit, concept, own)
        outside = indices[(indices < 0) | (indices >= len(own))]
        if len(outside):
            raise ValueError(f"component {int(outside[0])} is outside 0..{len(own) - 1}, the scores of {concept!r}")
        kept = (edit.factor if isinstance(edit, EditData) else 0.0) if factor is None else factor
        lost = strength * (1 - kept)
        change = -lost * float(own.values[indices].double().sum())
        intact = own.provenance.get("intact_j")
        error = None if own.standard_error is None else abs(lost) * float(own.standard_error[indices].double().norm())
        found[concept] = Damage(change, change / abs(intact) if intact else None, error)
    return dict(
        sorted(found.items(), key=lambda item: item[1].change if item[1].relative is None else item[1].relative)
    )


def _components(edit: EditData, concept: str, scores: Scores) -> Tensor:
    """The edit's components as the scores number them."""
    scores.space.fingerprint.require_same(edit.space.fingerprint, f"the edit, for the scores of {concept!r}")
    if edit.space.kind != scores.space.kind:
        if scores.space.kind != "weight":
            raise ValueError(
                f"the edit is of kind {edit.space.kind}, the scores of {concept!r} of kind {scores.space.kind}: "
                "score the edit's kind, or single weights"
            )
        edit = edit.to_weights()
    offsets = {entry.module: entry.offset for entry in scores.space}
    missing = [module for module in edit.components if module not in offsets]
    if missing:
        raise ValueError(f"the scores of {concept!r} have no module {missing[0]!r}, which the edit changes")
    return torch.cat([offsets[module] + indices for module, indices in edit.components.items()]).unique()


def replayed_damage(
    pipeline: Any,
    edit: EditData,
    recordings: Mapping[str, Recording],
    *,
    timesteps: Window | None = None,
    strength: float = 1.0,
    rows_per_pass: int = 64,
) -> dict[str, float]:
    """Per concept, how far the edit moves the outputs on its recorded trajectories, by running them under it.

    The mean over rows and timesteps in the window of |edited - recorded|^2 / |recorded - unconditional|^2: at 1 an edit
    moves the output as far as the prompt does. The pipeline is left as it is; no picture is drawn.
    Of recordings that were made with guidance off the output for a base prompt stands for the unconditional one (see
    ``objectives.fitted``). Cost: one forward pass of the recordings' rows. Raises ValueError when the edit or a
    recording is of another model.
    """
    moved = Moved(timesteps)
    targets = {concept: Target(*fitted(moved, recording, pipeline)) for concept, recording in recordings.items()}
    return objectives_under(pipeline, edit, targets, strength=strength, rows_per_pass=rows_per_pass)


def objectives_under(
    pipeline: Any, edit: EditData, targets: Mapping[str, Target], *, strength: float = 1.0, rows_per_pass: int = 64
) -> dict[str, float]:
    """Each target's objective under the edit, the mean over its recording's rows; the pipeline is left as it is.

    Raises ValueError as ``replayed_damage`` does.
    """
    for concept, target in targets.items():
        edit.space.fingerprint.require_same(target.recording.fingerprint, f"the edit, on the recording of {concept!r}")
    offsets = {entry.module: entry.offset for entry in edit.space}
    indices = torch.cat([offsets[module] + own for module, own in edit.components.items()]).unique()
    ablation = Ablation.from_indices(edit.space.n, indices, 1 - strength * (1 - edit.factor))
    with Measurer(denoiser_of(pipeline), list(targets.values()), edit.space, rows_per_pass) as measurer:
        found = measurer.measure([ablation])[:, 0]
    return dict(zip(targets, found.tolist(), strict=True))


class Moved(Objective):
    """|output - recorded output|^2 over |recorded output - base output|^2.

    Args:
        timesteps: the window to look at.
        base: "unconditional", or "base" for recordings of ``with_base``. None as for ``ConceptErasure``.
    """

    name = "moved"

    def __init__(self, timesteps: Window | None = None, base: str | None = None) -> None:
        super().__init__(timesteps)
        self.chooses_base = base is None
        self.needs = f"{base or 'unconditional'}_output"

    def against_base(self) -> Moved | None:
        return type(self)(self.timesteps, "base") if self.chooses_base else None

    def value(self, output: Tensor, call: DenoiserCall) -> Tensor:
        base = getattr(call, str(self.needs))
        assert call.output is not None and base is not None
        moved = squared_distance(output, call.output, call).sum(1)
        return moved / _apart(call.output, base, call)


class Expressed(Moved):
    """How far the output lies on the way from the base output to the recorded one.

    That is <output - base, recorded - base> / |recorded - base|^2: 1 for the recorded output, 0 for the base, below 0
    beyond it. Unlike a squared distance it tells an output that stopped at the base from one that was steered past it.

    Args:
        timesteps, base: as for ``Moved``.
    """

    name = "expressed"

    def value(self, output: Tensor, call: DenoiserCall) -> Tensor:
        base = getattr(call, str(self.needs))
        assert call.output is not None and base is not None
        after, before = squared_distance(output, base, call).sum(1), _apart(call.output, base, call)
        moved = squared_distance(output, call.output, call).sum(1)
        return (after + before - moved) / (2 * before)


def _apart(output: Tensor, base: Tensor, call: DenoiserCall) -> Tensor:
    """|output - base|^2 of each row, [B]. Raises ValueError where the prompt makes no difference to divide by."""
    apart = squared_distance(output, base, call).sum(1)
    none = apart <= 1e-10 * squared_distance(output, torch.zeros_like(output), call).sum(1)
    if bool(none.any()):
        raise ValueError(
            f"row {int(none.nonzero()[0])} at step {call.step} has the same output with its prompt and without: there "
            "is no change to compare with. Is the negative prompt the prompt itself, or guidance off?"
        )
    return apart


def damage_table(damages: Mapping[str, Damage]) -> str:
    """The predicted damage as lines of text, in percent of J where that is known."""
    width = max(len(concept) for concept in damages)
    lines = []
    for concept, damage in damages.items():
        unit = f"{damage.change:+.3g}" if damage.relative is None else f"{100 * damage.relative:+7.1f}% of J"
        error = ""
        if damage.standard_error is not None and damage.relative:
            error = f"  (± {100 * abs(damage.relative / damage.change) * damage.standard_error:.1f})"
        lines.append(f"{concept:<{width}}  {unit}{error}")
    return "\n".join(lines)


def overlap(scores: Sequence[Scores], ratio: float, sign: Sign = "positive") -> Tensor:
    """Which share of the top components two concepts have in common, float64 [c, c].

    Element [i, j] is |A_i and A_j| over the smaller of the two sets, where A_i are the components that
    ``Selection(ratio)`` takes for concept i: 1 on the diagonal, ``ratio`` in the mean for unrelated concepts.
    Raises ValueError when the scores are over other components or a concept has none of this sign.
    """
    if not scores:
        raise ValueError("overlap needs the scores of at least one concept")
    scores[0].require_same_space(scores[1:])
    masks = torch.zeros(len(scores), len(scores[0]), dtype=torch.float32)
    for row, own in zip(masks, scores, strict=True):
        chosen = select(own, Selection(ratio), sign=sign)
        if len(chosen) == 0:
            raise ValueError(f"no component has a {sign} score for {own.concept!r}")
        row[chosen] = 1
    sizes = masks.sum(1).double()
    return (masks @ masks.T).double() / torch.minimum(sizes[:, None], sizes[None, :])
