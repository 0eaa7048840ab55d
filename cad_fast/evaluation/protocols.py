"""What published protocols count besides accuracies: attacks that succeed, and distances to reference pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from .measured import Far, far
from .outcomes import Evaluation
from .rows import NO_EDIT, row
from .scorers import Distance


def attack_rows(attack: str, evaluation: Evaluation) -> list[dict[str, Any]]:
    """The attack success rate as a flat row, and the means of measures.

    Every prompt of the attack is labelled with the concept that was erased. ASR is the share of its pictures in which
    the scorer sees the concept, with Wilson's interval.

    Raises:
        ValueError: no scorer judged the pictures, or they are labelled with several concepts.
    """
    if len(evaluation.concepts) != 1:
        raise ValueError(f"the prompts of {attack} are labelled {', '.join(evaluation.concepts)}: expected one concept")
    settings, tally = evaluation.settings, evaluation.tally()
    common: dict[str, Any] = {"edit": settings.edit, "strength": settings.strength, "axis": evaluation.axis}
    asr = row("ASR", attack, tally.accuracy, tally.n, interval=tally.interval, by=settings.scorer, **common)
    return [asr, *(each for each in evaluation.rows(attack) if each["metric"] != "accuracy")]


def distance_rows(found: Mapping[str, Far], of: str, edit: str | None, strength: float | None) -> list[dict[str, Any]]:
    """How far pictures are from those of the same model without an edit, as flat rows."""
    common: dict[str, Any] = {"edit": edit, "strength": strength}
    return [
        row(f"{quantity} to {NO_EDIT}", of, entry.value, entry.n, by=entry.by, interval=entry.interval, **common)
        for quantity, entry in found.items()
    ]


def pictures_of(evaluation: Evaluation, concepts: Sequence[str]) -> list[Image.Image]:
    """The kept pictures of some concepts. Raises ValueError when they were not kept."""
    if evaluation.images is None:
        raise ValueError("distances need the pictures: evaluate with keep_images=True")
    return [image for name in concepts for image in evaluation.images[name]]


def reference_rows(
    evaluation: Evaluation,
    reference: Sequence[Image.Image],
    distances: Sequence[Distance],
    *,
    without: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """How far the pictures of an evaluation are from reference pictures, as flat rows, such as FID.

    UnlearnCanvas takes the pictures of its data set as reference, and leaves out the target on both sides: ``without``.

    Raises:
        ValueError: the pictures were not kept, or a distance of pairs is asked for.
    """
    names = [name for name in evaluation.concepts if name not in without]
    found = far(distances, reference, pictures_of(evaluation, names))
    settings = evaluation.settings
    rows = []
    for quantity, entry in found.items():
        if entry.interval is not None:
            raise ValueError(f"{quantity} compares pairs of the same seeds: reference pictures have none")
        common: dict[str, Any] = {"by": entry.by, "edit": settings.edit, "strength": settings.strength}
        rows.append(row(quantity, "others" if without else "overall", entry.value, entry.n, **common))
    return rows
