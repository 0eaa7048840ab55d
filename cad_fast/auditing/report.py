"""An audit as one HTML page with its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..report.html import Figure, Figures, Heading, Paragraph, Picture, Section, Table, write_report
from ..report.plots import recall_plot
from .result import AuditResult, Probe, row_of

HEADINGS = {
    "plain": "Plain prompts",
    "original": "Before it was erased",
    "amplified": "Amplified",
    "prompt": "Other prompts",
    "soft prompt": "A soft prompt",
    "control": "Noise of real pictures",
    "noise": "Noise of real pictures",
}
CAPTION = "Pictures in which the concept was recognised, with 95% Wilson intervals"


def write_audit_report(path: str | Path, result: AuditResult) -> Path:
    """Write the verdict, every probe with its interval, the curve over the share of weights, and pictures."""
    plain = row_of(result.probes[0])
    figures = [Figure(result.verdict, "verdict"), Figure(plain[1], "plain prompts", plain[2])]
    figures += [Figure(row[1], row[0], row[2]) for row in map(row_of, result.comes_back[:3])]
    sections: list[Section] = [Figures(figures), Paragraph(result.summary())]
    sections.append(Table(CAPTION, result.columns, result.rows()))
    curve = [probe for probe in result.probes if probe.way == "amplified"]
    if curve:
        alt = f"Share of pictures with {result.concept} against the share of weights that are amplified"
        sections.append(Picture(recall_plot(_curves(curve)), alt))
    heading = None
    for probe in result.probes:
        if HEADINGS[probe.way] != heading:
            heading = HEADINGS[probe.way]
            sections.append(Heading(heading))
        if probe.refused is not None:
            sections.append(Paragraph(f"{probe.name}: not run. {probe.refused}."))
        elif probe.name in result.sheets:
            _, share, limits, count = row_of(probe)
            caption = f"{probe.name}: recognised in {share} {limits} of {count}"
            sections.append(Picture(result.sheets[probe.name], f"Pictures by {probe.name}", caption))
    return write_report(path, f"Audit: {result.concept}", sections)


def _curves(probes: Sequence[Probe]) -> dict[str, list[dict[str, Any]]]:
    """What ``recall_plot`` takes: by the images, and towards the original where there is one."""
    curves: dict[str, list[dict[str, Any]]] = {}
    for probe in probes:
        name = "towards the original" if probe.details["towards_original"] else "by the images"
        point = {"ratio": probe.details["ratio"], "share": probe.share, "interval": probe.interval}
        curves.setdefault(name, []).append(point)
    return curves
