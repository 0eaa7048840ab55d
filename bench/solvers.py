"""Ridge regression at the size of attribution, each run in a process of its own: time and peak memory."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

# (name, ablations, components, contender): scikit-learn where it fits memory, on the same values and penalties.
CASES = (
    ("1,500 x 15,000", 1_500, 15_000, "ridge"),
    ("1,500 x 15,000", 1_500, 15_000, "scikit-learn RidgeCV"),
    ("4,000 x 40,000", 4_000, 40_000, "ridge"),
    ("4,000 x 40,000", 4_000, 40_000, "scikit-learn RidgeCV"),
    ("10,000 x 100,000", 10_000, 100_000, "ridge"),
    ("10,000 x 100,000", 10_000, 100_000, "lsmr"),
    ("10,000 x 100,000, seeds only", 10_000, 100_000, "lsmr of seeds"),
    ("10,000 x 1,000,000", 10_000, 1_000_000, "ridge"),
    ("10,000 x 1,000,000, seeds only", 10_000, 1_000_000, "lsmr of seeds"),
)
FRACTION, NOISE = 0.05, 0.5


def measure(most_ablations: int) -> list[dict[str, Any]]:
    """One line per case of at most so many ablations: seconds, peak GB of the process, and how good the fit is."""
    lines = []
    for name, m, n, contender in CASES:
        if m > most_ablations:
            continue
        command = [sys.executable, "-m", "bench.solvers", str(m), str(n), contender]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        lines.append({"case": name, "contender": contender, **json.loads(done.stdout.splitlines()[-1])})
        print(lines[-1], flush=True)
    return lines


def solver_markdown(lines: list[dict[str, Any]]) -> str:
    """A table."""
    rows = ["| ablations x components | contender | seconds | peak GB | r with the truth |", "|---|---|---|---|---|"]
    for line in lines:
        cells = (
            line["case"],
            line["contender"],
            f"{line['seconds']:.1f}",
            f"{line['peak_gb']:.2f}",
            f"{line['r']:.3f}",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "### Solvers\n\n" + "\n".join(rows) + "\n"


def main() -> None:
    """One case: make J from known scores, fit them, and print the figures as JSON."""
    import resource
    import time

    import torch

    from cad_fast.attribution.regression.design import Design, SeededDesign
    from cad_fast.attribution.regression.ridge import GRID
    from cad_fast.attribution.regression.solvers import fit
    from cad_fast.ops import unpack_bits

    m, n, contender = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    design: Design = SeededDesign(n, FRACTION, 1, m)
    if contender != "lsmr of seeds":
        design = Design(design.words, n)
    generator = torch.Generator().manual_seed(0)
    # A tenth as many components as ablations matter.
    truth = torch.randn(n, generator=generator).double() * (torch.rand(n, generator=generator) < 0.1 * m / n)
    j = design.times(truth)
    j = j + NOISE * j.std() * torch.randn(m, generator=generator).double()
    if contender == "scikit-learn RidgeCV":
        from sklearn.linear_model import RidgeCV

        x = 1 - torch.cat([unpack_bits(block, n) for block in design.words.split(256)]).double().numpy()
        unit = float((design.ablated_mean * (1 - design.ablated_mean)).sum())
        started = time.perf_counter()
        model = RidgeCV(alphas=(unit * GRID).numpy()).fit(x, j.numpy())
        seconds = time.perf_counter() - started
        alpha, penalty = torch.from_numpy(model.coef_), float(model.alpha_)
    else:
        started = time.perf_counter()
        found = fit(design, j, "lsmr" if contender.startswith("lsmr") else "ridge")
        seconds = time.perf_counter() - started
        alpha, penalty = found.alpha, found.penalty
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    r = float(torch.corrcoef(torch.stack([alpha, truth]))[0, 1])
    print(json.dumps({"seconds": seconds, "peak_gb": peak, "r": r, "penalty": penalty}))


if __name__ == "__main__":
    main()
