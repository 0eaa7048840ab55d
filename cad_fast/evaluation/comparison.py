"""Before against after: what an edit did to its target, and what it left of everything else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .intervals import (
    Interval,
    PairedCounts,
    harmonic_mean,
    harmonic_mean_interval,
    paired_difference,
    paired_ratio,
    wilson,
)
from .measured import Far, MeanChange, by_quantity, far
from .outcomes import Evaluation, Outcome
from .prompts import unknown
from .protocols import distance_rows, pictures_of
from .rows import row
from .scorers import Distance


@dataclass(frozen=True)
class Change:
    """Accuracy before and after on the same seeds, with 95% intervals."""

    pairs: PairedCounts

    @property
    def before(self) -> float:
        """Accuracy before, in 0..1."""
        return self.pairs.before / self.pairs.n

    @property
    def after(self) -> float:
        """Accuracy after, in 0..1."""
        return self.pairs.after / self.pairs.n

    @property
    def before_interval(self) -> Interval:
        return wilson(self.pairs.before, self.pairs.n)

    @property
    def after_interval(self) -> Interval:
        return wilson(self.pairs.after, self.pairs.n)

    @property
    def difference(self) -> float:
        """After minus before, in -1..1."""
        return self.after - self.before

    @property
    def difference_interval(self) -> Interval:
        return paired_difference(self.pairs)

    @property
    def kept(self) -> float | None:
        """Accuracy after as a percentage of that before; None when nothing was recognised before."""
        return 100 * self.pairs.after / self.pairs.before if self.pairs.before else None

    @property
    def kept_interval(self) -> Interval | None:
        ratio = paired_ratio(self.pairs)
        return ratio and Interval(100 * ratio.lower, 100 * ratio.upper)

    def part(self, edited: bool) -> tuple[int, int]:
        """(hits, n) of the pictures after, or before."""
        return (self.pairs.after if edited else self.pairs.before), self.pairs.n

    def to_dict(self) -> dict[str, Any]:
        """Accuracies in 0..1, ``kept`` in percent, intervals as pairs, and the counts of the paired outcomes."""
        kept_interval = self.kept_interval
        return {
            "n": self.pairs.n,
            "before": self.before,
            "before_interval": list(self.before_interval),
            "after": self.after,
            "after_interval": list(self.after_interval),
            "difference": self.difference,
            "difference_interval": list(self.difference_interval),
            "kept_percent": self.kept,
            "kept_interval": None if kept_interval is None else list(kept_interval),
            "hits_in_both": self.pairs.both,
            "hits_only_before": self.pairs.only_before,
            "hits_only_after": self.pairs.only_after,
            "hits_in_neither": self.pairs.neither,
        }


@dataclass(frozen=True)
class Comparison:
    """What became of the targets, of the other concepts (None when only targets were evaluated), and of other axes.

    ``concepts`` has the change of every concept; ``target`` and ``others`` pool theirs. As every concept has as many
    pictures, a pooled accuracy is the mean of the concepts' accuracies, and ``others.kept`` the ratio of the means.
    ``axes`` has the other axes, such as the style, judged on the pictures of the other concepts (of the targets when
    there are no others). ``became`` counts what the targets' pictures were taken for afterwards. ``measures`` and
    ``distances`` have for "target" and "others" what measures and distances gave, by quantity.
    """

    axis: str
    targets: tuple[str, ...]
    edit: str | None
    strength: float | None
    target: Change
    others: Change | None
    concepts: dict[str, Change]
    axes: dict[str, Change]
    became: dict[str, int]
    by: str | None = None
    measured_by: dict[str, str] = field(default_factory=dict)
    measures: dict[str, dict[str, MeanChange]] = field(default_factory=dict)
    distances: dict[str, dict[str, Far]] = field(default_factory=dict)

    @property
    def other_concepts(self) -> tuple[str, ...]:
        return tuple(concept for concept in self.concepts if concept not in self.targets)

    @property
    def worst(self) -> str | None:
        """The other concept whose accuracy fell most."""
        return min(self.other_concepts, key=lambda concept: self.concepts[concept].difference, default=None)

    def to_dict(self) -> dict[str, Any]:
        return {
            "axis": self.axis,
            "targets": list(self.targets),
            "edit": self.edit,
            "strength": self.strength,
            "target": self.target.to_dict(),
            "others": self.others and self.others.to_dict(),
            "worst_other": self.worst,
            "axes": {axis: change.to_dict() for axis, change in self.axes.items()},
            "became": self.became,
            "concepts": {concept: change.to_dict() for concept, change in self.concepts.items()},
            "measures": {
                group: {quantity: change.to_dict() for quantity, change in changes.items()}
                for group, changes in self.measures.items()
            },
            "distances": {
                group: {quantity: entry.to_dict() for quantity, entry in found.items()}
                for group, found in self.distances.items()
            },
        }

    def point(self, ratio: float) -> dict[str, Any]:
        """One point of ``tradeoff_plot``, all in percent: target accuracy after, others kept, style kept."""
        kept: dict[str, float] = {}
        intervals: dict[str, tuple[float, float]] = {}
        for name, change in (("others", self.others), ("style", self.axes.get("style"))):
            if change is not None and change.kept is not None:
                interval = change.kept_interval
                assert interval is not None, "both are defined where there are hits before"
                kept[name], intervals[name] = change.kept, (interval.lower, interval.upper)
        target = self.target.after_interval
        return {
            "ratio": ratio,
            "target": 100 * self.target.after,
            **kept,
            "intervals": {
                "target": (100 * target.lower, 100 * target.upper),
                **intervals,
            },
        }

    def rows(self, adjacent: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The results as flat rows of ``rows.COLUMNS``, for ``pandas.DataFrame``, first those of "no edit".

        UA, IRA and CRA are those of UnlearnCanvas (arXiv 2402.11846): the share of the targets' pictures that are not
        taken for them, and of the others' that are recognised on the same axis and on each other axis. ERB is that of
        FADE (arXiv 2503.19783): the harmonic mean of UA and the accuracy on concepts near the target.

        Args:
            adjacent: the concepts near the target, for ERB. None: all others.

        Raises:
            ValueError: a concept is not among the others.
        """
        near = self._pooled(self.other_concepts if adjacent is None else adjacent)
        of = ", ".join(self.targets)
        rows = []
        for edited in (False, True):
            common: dict[str, Any] = {"by": self.by, "edit": self.edit if edited else None}
            common["strength"] = self.strength if edited else None
            hits, n = self.target.part(edited)
            gone = (n - hits, n)
            rows.append(_share("UA", of, gone, axis=self.axis, **common))
            if self.others is not None:
                rows.append(_share("IRA", "others", self.others.part(edited), axis=self.axis, **common))
                for axis, change in self.axes.items():
                    rows.append(_share("CRA", "others", change.part(edited), axis=axis, **common))
            if near is not None:
                pair = (gone, near.part(edited))
                value, interval = harmonic_mean(*pair), harmonic_mean_interval(*pair)
                count = n + near.pairs.n
                rows.append(row("ERB", of, value, count, interval=interval, axis=self.axis, **common))
        return rows + self._measured_rows()

    def _measured_rows(self) -> list[dict[str, Any]]:
        """How the means of measures changed, and how far pictures moved."""
        edited: dict[str, Any] = {"edit": self.edit, "strength": self.strength}
        rows = []
        for group, changes in self.measures.items():
            for quantity, change in changes.items():
                by: dict[str, Any] = {"by": self.measured_by.get(quantity), "interval": change.difference_interval}
                rows.append(row(f"change of {quantity}", group, change.difference, len(change.after), **by, **edited))
        for group, found in self.distances.items():
            rows += distance_rows(found, group, **edited)
        return rows

    def _pooled(self, names: Sequence[str]) -> Change | None:
        """The changes of some of the other concepts as one; None of none."""
        for name in names:
            if name not in self.other_concepts:
                raise ValueError(unknown(f"other {self.axis}", name, self.other_concepts))
        pairs = [self.concepts[name].pairs for name in dict.fromkeys(names)]
        if not pairs:
            return None
        counts = ((p.both, p.only_before, p.only_after, p.neither) for p in pairs)
        return Change(PairedCounts(*map(sum, zip(*counts, strict=True))))

    columns = ("", "before", "after", "change", "kept")

    def cells(self) -> list[tuple[str, ...]]:
        """Cells for ``columns``: accuracies and kept in percent, changes in percentage points, 95% intervals."""
        rows = [_row(", ".join(self.targets), self.target)]
        if self.others is not None and self.worst is not None:
            rows.append(_row(f"{len(self.other_concepts)} others", self.others))
            rows.append(_row(f"worst: {self.worst}", self.concepts[self.worst]))
        return rows + [_row(axis, change) for axis, change in self.axes.items()]

    def table(self) -> str:
        """Aligned plain text: one line per row, and what became of the target."""
        cells = [self.columns, *self.cells()]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        lines = [
            "  ".join([row[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)])
            for row in cells
        ]
        became = ", ".join(f"{label} {count}" for label, count in self.became.items())
        return "\n".join([*lines, f"{', '.join(self.targets)} became: {became}"])


def _share(metric: str, of: str, part: tuple[int, int], **common: Any) -> dict[str, Any]:
    """One share of pictures as a row."""
    hits, n = part
    return row(metric, of, hits / n, n, interval=wilson(hits, n), **common)


def _row(name: str, change: Change) -> tuple[str, ...]:
    low, high = change.difference_interval
    kept, interval = change.kept, change.kept_interval
    return (
        name,
        f"{100 * change.before:.0f}% [{_percents(change.before_interval)}]",
        f"{100 * change.after:.0f}% [{_percents(change.after_interval)}]",
        f"{100 * change.difference:+.0f} [{100 * low:+.0f}, {100 * high:+.0f}]",
        "-" if kept is None or interval is None else f"{kept:.0f}% [{interval.lower:.0f}, {interval.upper:.0f}]",
    )


def _percents(interval: Interval) -> str:
    return f"{100 * interval.lower:.0f}, {100 * interval.upper:.0f}"


def _pair_up(pairs: Iterable[tuple[Outcome, Outcome]], axis: str) -> Change:
    counts = Counter((before.hit(axis), after.hit(axis)) for before, after in pairs)
    return Change(PairedCounts(counts[True, True], counts[True, False], counts[False, True], counts[False, False]))


def require_comparable(before: Evaluation, after: Evaluation) -> None:
    """Raises ValueError naming every difference, apart from the edit, in how two evaluations were made."""
    differences = before.settings.differences(after.settings)
    if set(before.concepts) != set(after.concepts):
        differences.append(f"the concepts are {', '.join(before.concepts)} and {', '.join(after.concepts)}")
    elif not differences:
        for mine, theirs in _by_seed(before, after):
            if (mine.prompt, mine.labels, mine.seed) != (theirs.prompt, theirs.labels, theirs.seed):
                differences.append(f"picture {mine.index} of {mine.concept!r} had other prompts, labels or seeds")
                break
    if differences:
        raise ValueError(f"these evaluations cannot be compared: {'; '.join(differences)}")


def _by_seed(before: Evaluation, after: Evaluation) -> list[tuple[Outcome, Outcome]]:
    theirs = {(outcome.concept, outcome.index): outcome for outcome in after.outcomes}
    return [(outcome, theirs[outcome.concept, outcome.index]) for outcome in before.outcomes]


def compare(
    before: Evaluation, after: Evaluation, target: str | Sequence[str], *, distances: Sequence[Distance] = ()
) -> Comparison:
    """Pair the outcomes of two evaluations by seed. ``target`` names the concept or concepts that the edit is for.

    ``distances`` compare the pictures of both, which must have been kept. Raises ValueError when they were made
    otherwise than by the edit alone, no scorer judged them, or a target was not evaluated.
    """
    if not (before.judged and after.judged):
        raise ValueError("no scorer judged these pictures: there is no accuracy to compare")
    targets = (target,) if isinstance(target, str) else tuple(dict.fromkeys(target))
    if not targets:
        raise ValueError("no target is named")
    for name in targets:
        if name not in before.concepts:
            raise ValueError(unknown(before.axis, name, before.concepts))
    require_comparable(before, after)
    pairs = _by_seed(before, after)
    of_targets = [pair for pair in pairs if pair[0].concept in targets]
    of_others = [pair for pair in pairs if pair[0].concept not in targets]
    axis = before.axis
    became = Counter(pair[1].predicted[axis] for pair in of_targets)
    return Comparison(
        axis=axis,
        targets=targets,
        edit=after.settings.edit,
        strength=after.settings.strength,
        target=_pair_up(of_targets, axis),
        others=_pair_up(of_others, axis) if of_others else None,
        concepts={
            name: _pair_up((pair for pair in pairs if pair[0].concept == name), axis) for name in before.concepts
        },
        axes={other: _pair_up(of_others or of_targets, other) for other in before.other_axes},
        became=dict(became.most_common()),
        by=before.settings.scorer,
        measured_by=dict(before.settings.measures),
        measures={
            group: changes
            for group, of_group in (("target", of_targets), ("others", of_others))
            if (changes := _mean_changes(of_group))
        },
        distances=_distances(before, after, targets, distances),
    )


def _mean_changes(pairs: Sequence[tuple[Outcome, Outcome]]) -> dict[str, MeanChange]:
    before, after = (by_quantity([pair[i].measured for pair in pairs]) for i in (0, 1))
    return {quantity: MeanChange(tuple(values), tuple(after[quantity])) for quantity, values in before.items()}


def _distances(
    before: Evaluation, after: Evaluation, targets: Sequence[str], distances: Sequence[Distance]
) -> dict[str, dict[str, Far]]:
    if not distances:
        return {}
    others = [name for name in before.concepts if name not in targets]
    groups = {"target": list(targets), "others": others}
    return {
        group: far(distances, pictures_of(before, names), pictures_of(after, names))
        for group, names in groups.items()
        if names
    }
