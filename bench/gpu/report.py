"""The findings of a run as Markdown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .figures_names import AUTO, DENSE, FLOOR

Finding = Mapping[str, Any]
MOST_LINES = 60
"""Of errors that are listed of one kind."""


def read_tests(path: Path) -> list[dict[str, Any]]:
    """What the plugin of pytest wrote."""
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def is_bad(lines: Sequence[Finding], tests: Sequence[Finding]) -> bool:
    """Whether anything was wrong, crashed or failed; what there was no time for is not bad."""
    wrong = any(line.get("error") and not line.get("cut") for line in lines)
    return wrong or any(test.get("outcome") == "failed" for test in tests)


def page(lines: Sequence[Finding], tests: Sequence[Finding], dry: bool) -> str:
    """The whole report."""
    by_section: dict[str, list[Finding]] = {}
    for line in lines:
        by_section.setdefault(line["section"], []).append(line)
    parts = ["# GPU check" + " (a dry run on a CPU: its figures mean nothing)" * dry, ""]
    parts += _environment(by_section.get("env", []))
    parts += _bars(lines)
    parts += _correct(by_section.get("correct", []))
    parts += _tests(tests, by_section.get("tests", []))
    for section in ("linear", "conv"):
        parts += _figures(section, by_section.get(section, []))
    parts += _models([line for each in ("model", "compile") for line in by_section.get(each, [])])
    parts += _attribution(by_section.get("attribution", []))
    return "\n".join(parts) + "\n"


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A table and an empty line."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return [*lines, *(f"| {' | '.join(map(_cell, row))} |" for row in rows), ""]


def _errors(lines: Sequence[Finding]) -> list[str]:
    """One line each: what went wrong, then what there was no time for."""
    bad = [line for line in lines if line.get("error") and not line.get("cut")]
    shown = [f"- {_where(line)}: {_cell(line['error'])[:700]}" for line in bad[:MOST_LINES]]
    if len(bad) > MOST_LINES:
        shown.append(f"- and {len(bad) - MOST_LINES} more, in gpu.jsonl")
    late = [f"{_where(line)} ({line['error'].removeprefix('out of time: ')})" for line in lines if line.get("cut")]
    if late:
        shown.append(f"- there was no time for: {'; '.join(_cell(each) for each in late)}")
    return [*shown, ""] if shown else []


def _where(line: Finding) -> str:
    where = " ".join(str(line[key]) for key in ("op", "backend", "dtype") if line.get(key))
    return f"{where}, {line.get('case', '')}" if where else str(line.get("case", ""))


def _environment(lines: Sequence[Finding]) -> list[str]:
    facts = [f"- {name}: {_cell(value)}" for line in lines for name, value in line.get("facts", {}).items()]
    return [*facts, "", *_errors(lines)] if lines else []


def _bars(lines: Sequence[Finding]) -> list[str]:
    """All bars, with how many of the cases meet them."""
    met: Counter[tuple[str, str]] = Counter()
    of: Counter[tuple[str, str]] = Counter()
    for line in lines:
        for bar in line.get("bars", []):
            if bar["met"] is not None:
                key = (line.get("op") or line["case"], _rows(line) + bar["bar"])
                of[key] += 1
                met[key] += bool(bar["met"])
    if not of:
        return []
    rows = [(op, bar, f"{met[op, bar]} of {count}", "yes" if met[op, bar] == count else "NO") for (op, bar), count in
            of.items()]  # fmt: skip
    return ["## Bars", "", *table(["operator", "bar", "cases that meet it", "met"], rows)]


def _rows(line: Finding) -> str:
    """How many rows the figures of a linear layer are of, as they decide which bars there are."""
    return line["case"].rsplit(", ", 1)[-1] + ": " if line["section"] == "linear" else ""


def _correct(lines: Sequence[Finding]) -> list[str]:
    judged = [line for line in lines if "right" in line or (line.get("error") and not line.get("cut"))]
    if not lines:
        return []
    right = sum(bool(line.get("right")) for line in judged)
    parts = [f"## Right: {right} of {len(judged)} cases", ""]
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for line in lines:
        groups.setdefault((line["op"], line["backend"], line["dtype"]), []).append(line)
    rows = []
    for key, own in sorted(groups.items()):
        cases = [line for line in own if "right" in line or (line.get("error") and not line.get("cut"))]
        excess = [line["excess"] for line in cases if line.get("excess") is not None]
        errors = [line["error_norm"] for line in cases if line.get("error_norm") is not None]
        refused = sum("refused" in line for line in own)
        rows.append(
            [
                *key,
                f"{sum(bool(line.get('right')) for line in cases)} of {len(cases)}",
                f"{max(excess):.2f}" if excess else "",
                f"{max(errors):.1e}" if errors else "",
                refused or "",
            ]
        )
    head = ["operator", "backend", "dtype", "right", "worst error by its bound", "worst relative error", "refused"]
    reasons = Counter((line["backend"], line["refused"]) for line in lines if "refused" in line)
    parts += [*table(head, rows), *_errors(lines)]
    parts += [f"- refused by {backend}, {count} cases: {_cell(why)}" for (backend, why), count in reasons.items()]
    return [*parts, ""]


def _tests(tests: Sequence[Finding], ends: Sequence[Finding]) -> list[str]:
    if not tests and not ends:
        return []
    collected = max((test["collected"] for test in tests if "collected" in test), default=0)
    outcomes = Counter(test["outcome"] for test in tests if "outcome" in test)
    said = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())) or "none"
    state = "".join(" CUT" if end.get("cut") else f" exit code {end['code']}" for end in ends)
    parts = [f"## Tests: {said}, of {collected} collected;{state or ' running'}", ""]
    for test in [test for test in tests if test.get("outcome") == "failed"]:
        text = test.get("text", "")
        parts += [f"- FAILED {_cell(test['test'])} ({test.get('when')})", "", "```", text, "```", ""]
    return parts


def _us(value: float, mark: str = "") -> str:
    return f"{value:.1f}{mark}" if value < 1000 else f"{value:.0f}{mark}"


def _figures(section: str, lines: Sequence[Finding]) -> list[str]:
    """A table per operator: ours first, as ratios to dense and to the floor, then every other contender."""
    parts: list[str] = []
    for op in dict.fromkeys(line["op"] for line in lines if "us" in line):
        own = [line for line in lines if line.get("op") == op and "us" in line]
        others = [name for name in dict.fromkeys(name for line in own for name in line["us"])]
        others = [name for name in others if name not in (AUTO, DENSE, FLOOR)]
        head = ["case", "ours, us", "chosen", "of dense", "of floor", "bars", "host, us", "dense, us", "floor, us"]
        head += [f"{name}, us (of ours)" for name in others]
        rows = [_figure_row(line, others) for line in own]
        parts += [f"### {op}", "", *table(head, rows), *_notes(own)]
    errors = _errors(lines)
    if not parts and not errors:
        return []
    note = "Microseconds on the device: graph replay, inputs not in L2; ~ launched one by one. bfloat16, 16 variants."
    return [f"## {section}", "", note, "", *parts, *errors]


def _figure_row(line: Finding, others: Sequence[str]) -> list[str]:
    us, marks, host = line["us"], line.get("marks", {}), line.get("host_us", {})

    def time_of(name: str) -> str:
        return _us(us[name], marks.get(name, "")) if name in us else ""

    def ratio(name: str, to: str) -> str:
        return f"{us[name] / us[to]:.2f}" if name in us and us.get(to) else ""

    bars = "; ".join(f"{bar['bar']}: {_ratio(bar['value'])} {_met(bar['met'])}" for bar in line["bars"])
    hosts = ", ".join(f"{name} {value:.0f}" for name, value in host.items())
    row = [line["case"], time_of(AUTO), line.get("chosen", ""), ratio(AUTO, DENSE), ratio(AUTO, FLOOR), bars, hosts]
    row += [time_of(DENSE), time_of(FLOOR)]
    return row + [f"{time_of(name)} ({ratio(name, AUTO)})" if name in us else "" for name in others]


def _ratio(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"


def _met(met: bool | None) -> str:
    return {True: "yes", False: "NO", None: ""}[met]


def _notes(lines: Sequence[Finding]) -> list[str]:
    """Why there is no graph, or no figure: each reason once, with whom it concerns and where it was seen first."""
    seen: dict[str, tuple[list[str], str]] = {}
    for line in lines:
        for name, why in line.get("notes", {}).items():
            names, _ = seen.setdefault(why[:120], ([], f"{line['case']}: {_cell(why)[:400]}"))
            if name not in names:
                names.append(name)
    return [*(f"- {', '.join(names)}, as in {said}" for names, said in seen.values()), ""] if seen else []


def _models(lines: Sequence[Finding]) -> list[str]:
    if not lines:
        return []
    parts = ["## UNet of Stable Diffusion 1.5, a batch of 16: milliseconds", ""]
    rows = []
    for line in lines:
        if "us" not in line:
            continue
        times = "; ".join(f"{name} {value / 1e3:.2f}" for name, value in line["us"].items())
        bars = "; ".join(f"{bar['bar']}: {_ratio(bar['value'])} {_met(bar['met'])}" for bar in line["bars"])
        notes = "; ".join(f"{name}: {note}" for name, note in line.get("notes", {}).items())
        rows.append([line["case"], times, bars, notes])
    return [*parts, *table(["case", "ms", "bars", "notes"], rows), *_errors(lines)]


def _attribution(lines: Sequence[Finding]) -> list[str]:
    if not lines:
        return []
    head = ["case", "components", "timesteps", "seconds", "peak memory, GB", "passes forward and back, of rows"]
    rows = [
        [line[key] for key in ("case", "components", "timesteps", "seconds", "peak_gb")] + [_passes(line["cost"])]
        for line in lines
        if "seconds" in line
    ]
    return ["## Attribution on that UNet", "", *table(head, rows), *_errors(lines)]


def _passes(cost: Mapping[str, Any]) -> str:
    return f"{cost['forward_passes']} + {cost['backward_passes']} of {cost['rows_per_pass']}"
