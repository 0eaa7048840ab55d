"""Before against after: what an edit did to its target, and what it left of everything else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .intervals import Interval, PairedCounts, paired_difference, paired_ratio, wilson
from .outcomes import Evaluation, Outcome
from .prompts import unknown


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
    there are no others). ``became`` counts what the targets' pictures were taken for afterwards.
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

    columns = ("", "before", "after", "change", "kept")

    def rows(self) -> list[tuple[str, ...]]:
        """Cells for ``columns``: accuracies and kept in percent, changes in percentage points, 95% intervals."""
        rows = [_row(", ".join(self.targets), self.target)]
        if self.others is not None and self.worst is not None:
            rows.append(_row(f"{len(self.other_concepts)} others", self.others))
            rows.append(_row(f"worst: {self.worst}", self.concepts[self.worst]))
        return rows + [_row(axis, change) for axis, change in self.axes.items()]

    def table(self) -> str:
        """Aligned plain text: one line per row, and what became of the target."""
        cells = [self.columns, *self.rows()]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        lines = [
            "  ".join([row[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)])
            for row in cells
        ]
        became = ", ".join(f"{label} {count}" for label, count in self.became.items())
        return "\n".join([*lines, f"{', '.join(self.targets)} became: {became}"])


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
            if (mine.prompt, mine.labels) != (theirs.prompt, theirs.labels):
                differences.append(f"picture {mine.index} of {mine.concept!r} had other prompts or labels")
                break
    if differences:
        raise ValueError(f"these evaluations cannot be compared: {'; '.join(differences)}")


def _by_seed(before: Evaluation, after: Evaluation) -> list[tuple[Outcome, Outcome]]:
    theirs = {(outcome.concept, outcome.index): outcome for outcome in after.outcomes}
    return [(outcome, theirs[outcome.concept, outcome.index]) for outcome in before.outcomes]


def compare(before: Evaluation, after: Evaluation, target: str | Sequence[str]) -> Comparison:
    """Pair the outcomes of two evaluations by seed. ``target`` names the concept or concepts that the edit is for.

    Raises ValueError when they were made otherwise than by the edit alone, or a target was not evaluated.
    """
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
    )
