"""What an edit is, in words and numbers; its provenance may come from elsewhere and hold anything."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..data import EditData
from .config import MAX_COMPONENTS


def describe(edit: EditData) -> dict[str, Any]:
    """What is in an edit, JSON-able: name, model, modules, counts, and what its provenance says of how it was made."""
    made = edit.provenance
    return {
        "name": edit.name,
        "concept": made.get("concept"),
        "model": edit.space.fingerprint.model_class,
        "kind": edit.space.kind,
        "factor": edit.factor,
        "n_components": edit.n_components,
        "n_weights": edit.n_weights,
        "share": edit.n_components / edit.space.n,
        "digest": edit.digest(),
        "modules": {
            entry.module: {
                "weight_shape": list(entry.weight_shape),
                "components": len(edit.components[entry.module]),
                "of": entry.count,
            }
            for entry in edit.space
        },
        "method": made.get("method"),
        "objective": made.get("objective"),
        "selection": made.get("selection"),
        "refined": made.get("refined"),
        "trust": made.get("trust"),
        "prompts": made.get("prompts"),
        "seeds": made.get("seeds"),
        "versions": made.get("versions"),
        "composed_of": made.get("composed_of"),
        "evaluation": made.get("evaluation"),
        "predicted": made.get("predicted"),
    }


def describe_text(edit: EditData) -> str:
    """``describe`` for people: one line per fact and per module."""
    about = describe(edit)
    lines = [
        f"{edit.name}: {edit.n_components} components of kind {edit.space.kind} ({edit.n_weights} weights), "
        f"{about['share']:.3%} of those of its {len(edit.components)} modules, times {edit.factor:g}",
        f"model: {clean(about['model'])} {edit.space.fingerprint.architecture[:12]}",
    ]
    for key in ("concept", "method", "objective", "selection", "refined", "prompts", "seeds", "versions"):
        if about[key] not in (None, [], {}):
            lines.append(f"{key}: {clean(about[key], 240)}")
    parts = about["composed_of"] if isinstance(about["composed_of"], list) else []
    for part in parts:
        name = part.get("name") if isinstance(part, dict) else part
        lines.append(f"composed of: {clean(name)}")
    lines.append(f"trust: {trust_text(about['trust'])}")
    lines.append(prediction_text(about["predicted"]))
    rows = evaluation_rows(about["evaluation"])
    lines += [f"evaluation: {', '.join(row)}" for row in rows] if rows else ["evaluation: none"]
    lines.append(f"digest: {about['digest']}")
    width = max(len(module) for module in about["modules"])
    for module, entry in about["modules"].items():
        shape = "x".join(map(str, entry["weight_shape"]))
        lines.append(f"  {module:<{width}}  {shape:>12}  {entry['components']:>8} of {entry['of']}")
    return "\n".join(lines)


def trust_text(trust: Any) -> str:
    """The held-out checks of the scores that an edit was made from, in words."""
    checks = trust if isinstance(trust, list) else []
    found = []
    for check in checks[:8]:
        r, n, fraction = (_number(check, key) for key in ("pearson", "n", "fraction"))
        if r is not None and n is not None and fraction is not None:
            found.append(f"r = {r:.2f} on {n:.0f} held-out ablations of {fraction:.2%}")
    return "; ".join(found) or "the scores were not checked on held-out ablations"


def prediction_text(predicted: Any) -> str:
    """Say in words what an edit is predicted to do, from ``provenance["predicted"]``, which may hold anything."""
    left = _number(predicted, "left")
    moved = predicted.get("moved") if isinstance(predicted, dict) else None
    if left is None or not isinstance(moved, dict):
        return "predicted: nothing was predicted"
    parts = {clean(name, 40): _number(moved, name) for name in list(moved)[:8]}
    others = ", ".join(f"{name} {100 * value:.1f}%" for name, value in parts.items() if value is not None)
    more = f" and {len(moved) - 8} more" if len(moved) > 8 else ""
    loss = predicted.get("left_of") == "loss"
    first = f"the loss on its pictures is {left:.2f} of before" if loss else f"{left:.2f} of the concept is left"
    seen = _number(predicted, "seen")
    if seen is not None:
        first += f", and the model sees it in {seen:.0%} of the pictures drawn"
    kept = _number(predicted, "kept")
    if kept is not None:
        first += f" and still sees {kept:.0%} of what is kept and fares worst"
    return f"predicted: {first}; outputs on others move by {others}{more} of what their prompts do"


def evaluation_rows(evaluation: Any) -> list[tuple[str, ...]]:
    """Cells of a table of before and after, from ``provenance["evaluation"]``; empty when it holds none."""
    if not isinstance(evaluation, dict):
        return []
    concepts, targets = evaluation.get("concepts"), evaluation.get("targets")
    concepts = concepts if isinstance(concepts, dict) else {}
    targets = targets if isinstance(targets, list) else []
    worst = evaluation.get("worst_other")
    named = [
        (", ".join(map(str, targets)) or "target", evaluation.get("target")),
        (f"{max(0, len(concepts) - len(targets))} others", evaluation.get("others")),
        (f"worst: {worst}", concepts.get(worst) if isinstance(worst, str) else None),
        *(evaluation["axes"].items() if isinstance(evaluation.get("axes"), dict) else ()),
    ]
    return [(clean(name), *cells) for name, change in named if (cells := _change(change))]


def _change(change: Any) -> tuple[str, ...]:
    def percent(key: str, scale: float, sign: str = "") -> str:
        value = _number(change, key)
        return "-" if value is None else f"{scale * value:{sign}.0f}{'' if sign else '%'}"

    def interval(key: str, scale: float) -> str:
        pair = change.get(key)
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            return ""
        numbers = [_number({"": side}, "") for side in pair]
        return "" if None in numbers else f" [{scale * numbers[0]:.0f}, {scale * numbers[1]:.0f}]"  # type: ignore[operator]

    if _number(change, "before") is None or _number(change, "after") is None:
        return ()
    return (
        percent("before", 100) + interval("before_interval", 100),
        percent("after", 100) + interval("after_interval", 100),
        percent("difference", 100, "+") + interval("difference_interval", 100),
        percent("kept_percent", 1) + interval("kept_interval", 1),
    )


def _number(value: Any, key: str) -> float | None:
    number = value.get(key) if isinstance(value, dict) else None
    if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) < 1e18:
        return None
    return float(number) if math.isfinite(number) else None


def clean(value: Any, length: int = 200) -> str:
    """``value`` as one line of at most ``length`` characters, without control characters a terminal would obey."""
    text = "".join(char if char.isprintable() else " " for char in str(value)[: 4 * length])
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 3]}..."


def difference(first: EditData, second: EditData) -> dict[str, Any]:
    """How two edits differ: shared and own components per module, their Jaccard index, factors and models.

    Edits of different kinds are compared by their weights. JSON-able. Raises ValueError when that takes too many.
    """
    kinds = (first.space.kind, second.space.kind)
    mine, theirs = first, second
    if kinds[0] != kinds[1]:
        for edit in (first, second):
            if edit.n_weights > MAX_COMPONENTS:
                raise ValueError(f"edit {edit.name!r} has {edit.n_weights} weights: too many to compare one by one")
        mine, theirs = first.to_weights(), second.to_weights()
    modules: dict[str, dict[str, Any]] = {}
    for module in dict.fromkeys([*mine.components, *theirs.components]):
        a, b = (edit.components.get(module, torch.tensor([], dtype=torch.int64)) for edit in (mine, theirs))
        shared = int(torch.isin(a, b, assume_unique=True).sum())
        modules[module] = {"shared": shared, "only_first": len(a) - shared, "only_second": len(b) - shared}
    totals = {key: sum(entry[key] for entry in modules.values()) for key in ("shared", "only_first", "only_second")}
    for entry in (*modules.values(), totals):
        entry["jaccard"] = entry["shared"] / (entry["shared"] + entry["only_first"] + entry["only_second"])
    return {
        "first": first.name,
        "second": second.name,
        "compared_as": mine.space.kind,
        "kinds": list(kinds),
        "factors": [first.factor, second.factor],
        "models_differ": first.space.fingerprint.difference(second.space.fingerprint),
        **totals,
        "modules": modules,
    }
