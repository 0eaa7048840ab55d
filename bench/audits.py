"""``python -m bench.audits --output DIR``: what comes back of an object erased by each method, our own included.

Each method erases the object in a checkpoint, and ``cad_fast.audit`` looks for it there: by amplifying, by other
prompts, by a soft prompt, by noise of real pictures. A probe has the same noise for all methods. Audits are saved as
they go; a second run goes on where the first stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cad_fast
from bench.baselines import BASELINES, write_checkpoint
from bench.methods import METHODS, OURS
from cad_fast import zoo
from cad_fast.auditing import AuditResult
from cad_fast.edits.files.checkpoints import export_checkpoint
from cad_fast.files import require_writable_folder, write_text

# A stream of its own: nothing was chosen on it.
SEED = 17_000


def checkpoint(folder: Path, intact: Any, method: str, concept: str) -> Path:
    """The denoiser's weights with the concept erased by a method; made if they are not there."""
    own = folder / "checkpoints" / method / concept
    if method == OURS:
        return own if own.exists() else export_checkpoint(cad_fast.erase(intact, concept, progress=False), intact, own)
    path = own.with_suffix(".safetensors")
    return path if path.exists() else write_checkpoint(BASELINES[method], intact, concept, path.parent)


def audited(folder: Path, intact: Any, method: str, concept: str, per_probe: int) -> AuditResult:
    """The audit of a method's checkpoint."""
    weights = checkpoint(folder, intact, method, concept)
    pipeline = cad_fast.load_pipeline("zoo:emoji", denoiser_weights=weights)
    return cad_fast.audit(
        pipeline,
        concept,
        per_probe=per_probe,
        seed=SEED,
        output_dir=folder / f"{method}-{concept}",
        progress=False,
        num_inference_steps=zoo.generation().num_inference_steps,
    )


def table(results: dict[str, AuditResult]) -> str:
    """One row per probe, one column per method: the share recognised, with its 95% interval; then the verdicts."""
    names = list(dict.fromkeys(probe.name for result in results.values() for probe in result.probes))
    lines = [f"| way | {' | '.join(results)} |", f"|{'---|' * (1 + len(results))}"]
    for name in names:
        cells = [next((cell(p) for p in result.probes if p.name == name), "-") for result in results.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append(f"| **verdict** | {' | '.join(result.verdict for result in results.values())} |")
    return "\n".join(lines) + "\n"


def cell(probe: Any) -> str:
    """A probe as a cell."""
    if probe.interval is None:
        return f"not run: {probe.refused}"
    return f"{probe.share:.2f} [{probe.interval.lower:.2f}, {probe.interval.upper:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.audits", description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[OURS, "esd-x", "uce", "cad"])
    parser.add_argument("--concepts", nargs="+", choices=zoo.OBJECTS, default=["car"])
    parser.add_argument("--per-probe", type=int, default=24, help="pictures per way (default 24)")
    arguments = parser.parse_args()
    folder, intact = require_writable_folder(arguments.output), zoo.load()
    for concept in arguments.concepts:
        results = {}
        for method in arguments.methods:
            results[method] = audited(folder, intact, method, concept, arguments.per_probe)
            print(f"{concept}, {method}: {results[method].verdict}", flush=True)
        found = table(results)
        write_text(folder / f"{concept}.md", found)
        print(found, flush=True)


if __name__ == "__main__":
    main()
