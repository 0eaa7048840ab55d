"""What ``cad-fast attribute`` prints and writes of scores, of one concept or of many."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..attribution import Scores
from ..attribution.trust import trust_lines
from ..edits import overlap
from ..files import write_bytes, write_json
from ..report import overlap_plot
from .common import say

# Of the top components that two concepts are compared by, as in docs/attribution.md.
OVERLAP_RATIO = 0.03
MOST_PLOTTED = 60


def of_one(arguments: argparse.Namespace, scores: Scores, output: Path) -> dict[str, Any]:
    """What the scores of one concept say of themselves."""
    cost = scores.provenance["cost"]
    say(
        arguments,
        f"{scores!r}\n"
        f"cost: {cost['recorded_denoiser_calls']} denoiser calls to record, {cost['forward_passes']} "
        f"forward and {cost['backward_passes']} backward passes of up to {cost['rows_per_pass']} rows, "
        f"{cost['seconds']} s\n"
        + "".join(f"{line}\n" for line in trust_lines(scores))
        + "".join(f"  {value:+.3e}  {name}\n" for name, value in scores.top(5))
        + f"written to {output / 'scores.safetensors'}",
    )
    return {
        "scores": str(output / "scores.safetensors"),
        "n": scores.space.n,
        "cost": cost,
        "trust": scores.trust,
        "top": scores.top(10),
    }


def of_many(arguments: argparse.Namespace, scores_of: dict[str, Scores], output: Path) -> dict[str, Any]:
    """What each concept's scores say of themselves, and which of their top components two concepts share."""
    first = next(iter(scores_of.values()))
    lines = [f"{len(scores_of)} concepts, {first.provenance['method']}, {first.space.n} of kind {first.space.kind}"]
    for name, scores in scores_of.items():
        cost = scores.provenance["cost"]
        passes = f"{cost['forward_passes']} forward and {cost['backward_passes']} backward passes, {cost['seconds']} s"
        lines += [f"{name}: {output / name}", f"  {passes}{' for all' if 'shared_by_concepts' in cost else ''}"]
        lines += [f"  {line}" for line in trust_lines(scores)]
    concepts = {
        name: {
            "scores": str(output / name),
            "cost": scores.provenance["cost"],
            "trust": scores.trust,
            "stop_when": scores.provenance.get("stop_when"),
            "top": scores.top(10),
        }
        for name, scores in scores_of.items()
    }
    shared = _overlap(scores_of, output, lines)
    say(arguments, "\n".join([*lines, f"written to {output}"]))
    return {"concepts": concepts, "n": first.space.n, "overlap": shared}


def _overlap(scores_of: dict[str, Scores], output: Path, lines: list[str]) -> dict[str, Any] | None:
    """Writes ``overlap.json`` and, with matplotlib, ``overlap.png``; what could not be done is added to ``lines``."""
    try:
        shares = overlap(list(scores_of.values()), OVERLAP_RATIO)
    except ValueError as error:
        lines.append(f"no overlap: {error}")
        return None
    result = {"ratio": OVERLAP_RATIO, "concepts": list(scores_of), "shares": shares.tolist()}
    write_json(output / "overlap.json", result)
    if len(scores_of) > MOST_PLOTTED:
        lines.append(f"no overlap.png: more than {MOST_PLOTTED} concepts")
        return result
    try:
        title = f"Components among the top {OVERLAP_RATIO:.0%} of two concepts"
        write_bytes(output / "overlap.png", overlap_plot(shares, list(scores_of), title=title))
    except ImportError as error:
        lines.append(f"no overlap.png: {error}")
    return result
