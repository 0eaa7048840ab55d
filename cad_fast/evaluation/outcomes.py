"""What an evaluation found: one outcome per picture, and the counts made from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from PIL import Image

from ..components.fingerprint import Fingerprint
from ..diffusion.generation import Generation
from ..files import read_json, write_json
from .intervals import Interval, mean_interval, wilson
from .measured import as_list, by_quantity, mean
from .prompts import unknown
from .rows import row

FORMAT = 1


@dataclass(frozen=True)
class Outcome:
    """One picture: its number among those of its concept, what it was asked to show, and what it was taken for.

    ``labels`` and ``predicted`` hold one label per axis, ``probability`` that of the label asked for; the last two are
    empty where no scorer judged. ``measured`` has the numbers of measures by quantity.
    """

    concept: str
    index: int
    prompt: str
    labels: dict[str, str]
    predicted: dict[str, str]
    probability: dict[str, float]
    measured: dict[str, float] = field(default_factory=dict)
    seed: int | None = None

    def hit(self, axis: str) -> bool:
        """Whether it was taken for what it was asked to show. Raises ValueError when no scorer judged it."""
        if not self.predicted:
            raise ValueError("no scorer judged these pictures: they have no accuracy")
        return self.predicted[axis] == self.labels[axis]


@dataclass(frozen=True)
class Tally:
    """How many of ``n`` pictures were recognised as asked for, and the mean probability of what was asked for."""

    n: int
    hits: int
    mean_probability: float

    @classmethod
    def of(cls, outcomes: Iterable[Outcome], axis: str) -> Tally:
        """Raises ValueError when there are no outcomes."""
        counted = list(outcomes)
        if not counted:
            raise ValueError("there are no outcomes to count")
        hits = sum(outcome.hit(axis) for outcome in counted)
        return cls(len(counted), hits, sum(outcome.probability[axis] for outcome in counted) / len(counted))

    @property
    def accuracy(self) -> float:
        """Share of hits, in 0..1."""
        return self.hits / self.n

    @property
    def interval(self) -> Interval:
        """95% Wilson interval of the accuracy."""
        return wilson(self.hits, self.n)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "accuracy": self.accuracy, "interval": list(self.interval)}


@dataclass(frozen=True)
class Settings:
    """How the pictures were made and judged.

    Steps and guidance of ``generation`` are None where the pipeline's default was used. ``fingerprint`` is of the
    denoiser without the edit. ``edit`` and ``strength`` are None for the unedited pipeline. ``model`` says in which
    dtype it ran and how it was loaded (see ``loading.model_facts``). ``scorer`` is None where no scorer judged, and
    ``measures`` names for each quantity what measured it.
    """

    axis: str
    per_concept: int
    seed: int
    generation: Generation
    scheduler: dict[str, Any]
    scorer: str | None
    labels: dict[str, list[str]]
    fingerprint: Fingerprint
    edit: str | None = None
    strength: float | None = None
    model: dict[str, Any] = field(default_factory=dict)
    measures: dict[str, str] = field(default_factory=dict)

    def differences(self, other: Settings) -> list[str]:
        """What, apart from the edit, was done otherwise in ``other``, in words."""
        differences = []
        here, there = self.to_dict(), other.to_dict()
        for name, mine in here.items():
            theirs = there[name]
            if name == "model":  # where it ran makes no difference
                mine, theirs = ({"dtype": each.get("dtype")} for each in (mine, theirs))
            if name in ("edit", "strength", "fingerprint") or mine == theirs:
                continue
            if isinstance(mine, dict):
                keys = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
                differences += [f"{name}[{key!r}] is {mine.get(key)!r} and {theirs.get(key)!r}" for key in keys]
            else:
                differences.append(f"{name} is {mine!r} and {theirs!r}")
        reason = self.fingerprint.difference(other.fingerprint)
        return [*differences, f"the models differ: {reason}"] if reason else differences

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON; those of ``generation`` stand among them."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "generation"}
        return {**values, **self.generation.to_dict(), "fingerprint": self.fingerprint.to_dict()}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Settings:
        """Raises ValueError, TypeError or KeyError for an entry that is missing or of the wrong kind."""
        generation = Generation.from_dict(value)
        others = {name: entry for name, entry in value.items() if name not in generation.to_dict()}
        fingerprint = Fingerprint.from_dict(value["fingerprint"])
        settings = cls(**{**others, "generation": generation, "fingerprint": fingerprint})
        kinds: dict[str, type] = {"axis": str, "per_concept": int, "seed": int, "scorer": str}
        kinds |= dict.fromkeys(("scheduler", "labels", "model", "measures"), dict)
        for name, kind in kinds.items():
            if not isinstance(getattr(settings, name), kind) and (name, getattr(settings, name)) != ("scorer", None):
                raise ValueError(f"its {name} is {getattr(settings, name)!r}, expected {kind.__name__}")
        return settings


@dataclass(frozen=True)
class Evaluation:
    """Outcomes of one run over the concepts of an axis, how they came about, and the pictures when kept.

    ``images`` maps each concept to its pictures in the order of their numbers; it is not saved.
    """

    settings: Settings
    outcomes: tuple[Outcome, ...]
    images: dict[str, list[Image.Image]] | None = field(default=None, compare=False, repr=False)

    @property
    def axis(self) -> str:
        """The axis whose concepts were evaluated."""
        return self.settings.axis

    @property
    def concepts(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(outcome.concept for outcome in self.outcomes))

    @property
    def judged(self) -> bool:
        """Whether a scorer judged the pictures; if none did, there are measures only."""
        return bool(self.outcomes[0].predicted)

    @property
    def other_axes(self) -> tuple[str, ...]:
        """What else was judged, such as the style."""
        return tuple(axis for axis in self.outcomes[0].labels if axis != self.axis)

    def of(self, concept: str) -> list[Outcome]:
        """Outcomes of one concept. Raises ValueError naming the nearest concepts when it was not evaluated."""
        if concept not in self.concepts:
            raise ValueError(unknown(self.axis, concept, self.concepts))
        return [outcome for outcome in self.outcomes if outcome.concept == concept]

    def tally(self, concept: str | None = None, axis: str | None = None) -> Tally:
        """Hits on ``axis`` (default: the main one), of one concept or of all. Raises ValueError for unknown names."""
        axis = axis or self.axis
        if axis not in self.outcomes[0].labels:
            raise ValueError(unknown("axis", axis, self.outcomes[0].labels))
        return Tally.of(self.of(concept) if concept is not None else self.outcomes, axis)

    def became(self, concept: str) -> dict[str, int]:
        """What the pictures of ``concept`` were taken for: label and count, the most frequent first."""
        return dict(Counter(outcome.predicted[self.axis] for outcome in self.of(concept)).most_common())

    def summary(self) -> dict[str, Any]:
        """The counts as JSON: per concept and, under "overall", of all pictures; per axis."""
        axes = (self.axis, *self.other_axes) if self.judged else ()
        per_concept: dict[str, dict[str, Any]] = {concept: {} for concept in self.concepts}
        for concept, entry in per_concept.items():
            entry.update({axis: self.tally(concept, axis).to_dict() for axis in axes})
            if self.judged:
                entry["became"] = self.became(concept)
            if means := self.means(concept):
                entry["measures"] = means
        overall: dict[str, Any] = {axis: self.tally(axis=axis).to_dict() for axis in axes}
        if means := self.means():
            overall["measures"] = means
        return {"concepts": per_concept, "overall": overall}

    def measured(self, concept: str | None = None) -> dict[str, list[float]]:
        """The numbers of the pictures by quantity, of one concept or of all."""
        outcomes = self.of(concept) if concept is not None else self.outcomes
        return by_quantity([outcome.measured for outcome in outcomes])

    def means(self, concept: str | None = None) -> dict[str, dict[str, Any]]:
        """By quantity the mean over the pictures of a concept, or of all, with its interval."""
        return {
            quantity: {"n": len(values), "mean": mean(values), "interval": as_list(mean_interval(values))}
            for quantity, values in self.measured(concept).items()
        }

    def rows(self, of: str | None = None) -> list[dict[str, Any]]:
        """The results as flat rows of ``rows.COLUMNS``, for ``pandas.DataFrame``: per concept, and "overall".

        "accuracy" of each axis with Wilson's interval, and the mean of each quantity with Student's. ``of`` names all
        pictures together in place of the concepts, such as an attack.
        """
        groups: dict[str, str | None] = {of: None} if of else {**{c: c for c in self.concepts}, "overall": None}
        settings = self.settings
        edited: dict[str, Any] = {"edit": settings.edit, "strength": settings.strength}
        rows = []
        for name, concept in groups.items():
            for axis in (self.axis, *self.other_axes) if self.judged else ():
                tally = self.tally(concept, axis)
                by: dict[str, Any] = {"by": settings.scorer, "axis": axis, "interval": tally.interval}
                rows.append(row("accuracy", name, tally.accuracy, tally.n, **by, **edited))
            for quantity, values in self.measured(concept).items():
                by = {"by": settings.measures.get(quantity), "interval": mean_interval(values)}
                rows.append(row(quantity, name, mean(values), len(values), **by, **edited))
        return rows

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "settings": self.settings.to_dict(),
            "summary": self.summary(),
            "outcomes": [asdict(outcome) for outcome in self.outcomes],
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Evaluation:
        """Read what ``to_dict`` gave; the summary is made anew. Raises ValueError saying what is missing or wrong."""
        if value.get("format") != FORMAT:
            raise ValueError(f"its format is {value.get('format')!r}, this version reads {FORMAT}")
        try:
            evaluation = cls(
                Settings.from_dict(value["settings"]), tuple(Outcome(**entry) for entry in value["outcomes"])
            )
            _check(evaluation)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"damaged evaluation: {error!r}") from error
        return evaluation

    def save(self, path: str | Path) -> Path:
        """Write everything but the pictures as JSON."""
        return write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """Raises FileNotFoundError, or ValueError naming the file when it is not a whole evaluation."""
        try:
            return cls.from_dict(read_json(path))
        except ValueError as error:
            raise ValueError(f"{path} is not an evaluation: {error}") from error


def _check(evaluation: Evaluation) -> None:
    """Raises ValueError or TypeError when outcomes are missing, or judged on other axes than the first."""
    n = evaluation.settings.per_concept
    if not evaluation.outcomes:
        raise ValueError("it has no outcomes")
    axes = set(evaluation.outcomes[0].labels)
    for concept in evaluation.concepts:
        outcomes = evaluation.of(concept)
        if [outcome.index for outcome in outcomes] != list(range(n)):
            raise ValueError(f"outcomes of {concept!r} are missing or out of order, expected {n}")
        for outcome in outcomes:
            judged = (set(outcome.predicted), set(outcome.probability))
            expected = axes if evaluation.judged else set()
            if set(outcome.labels) != axes or judged != (expected, expected) or evaluation.axis not in axes:
                raise ValueError(f"outcome {outcome.index} of {concept!r} was judged on other axes than the first")
            if not all(isinstance(p, float | int) and 0 <= p <= 1 for p in outcome.probability.values()):
                raise ValueError(f"outcome {outcome.index} of {concept!r} has a probability outside 0..1")
            if set(outcome.measured) != set(evaluation.settings.measures) or not all(
                isinstance(value, float | int) for value in outcome.measured.values()
            ):
                raise ValueError(f"outcome {outcome.index} of {concept!r} was measured otherwise than the settings say")
