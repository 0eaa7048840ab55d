"""``python -m bench --output DIR``: run the benchmarks; table (Markdown), figures (JSON) and a plot.

Every row is measured interleaved with its peers. Ratios above 1 in a peer's column mean that the peer takes longer than
cad_fast; "of dense" is cad_fast's time divided by the best dense call's on the same rows.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from cad_fast import __version__, backend_report
from cad_fast.files import require_writable_folder, write_bytes, write_json, write_text

from . import conv, edits, linear, model, solvers, threads
from .plot import ratio_plot
from .shapes import CONVS, LINEARS, ROWS
from .timing import interleaved_medians

OPS = {
    "masked_linear": (linear.masked_linear, LINEARS, ROWS),
    "edited_linear": (linear.edited_linear, LINEARS, ROWS),
    "gated_linear": (linear.gated_linear, LINEARS, ROWS),
    "masked_linear_scores": (linear.masked_linear_scores, LINEARS, ROWS),
    "masked_conv2d": (conv.masked_conv2d, CONVS, (1, 4)),
    "edited_conv2d": (conv.edited_conv2d, CONVS, (1, 4)),
    "gated_conv2d": (conv.gated_conv2d, CONVS, (1, 4)),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DENSE = (linear.TORCH, linear.ONEDNN)
# Larger inputs take minutes per peer and tell nothing new: the ratios have settled at 256 rows per variant.
MOST_FLOPS = 2e11


def flops(shape: Any, rows: int) -> float:
    """Multiply-adds times two of the dense call on 16 variants."""
    if hasattr(shape, "k"):
        return 2.0 * 16 * rows * shape.n * shape.k
    return 2.0 * 16 * rows * shape.n * shape.c * shape.kernel**2 * shape.size**2


def run_op(name: str, dtype: str, seconds: float) -> list[dict[str, Any]]:
    """One line per shape and number of rows per variant."""
    prepare, shapes, row_counts = OPS[name]
    lines = []
    cases = [(shape, rows) for shape in shapes for rows in row_counts if flops(shape, rows) <= MOST_FLOPS]
    for shape, rows in tqdm(cases, desc=f"{name} {dtype}"):
        calls, facts = prepare(shape, rows, DTYPES[dtype])
        with torch.no_grad():
            medians = interleaved_medians(calls, seconds)
        ours = medians["cad_fast"]
        best = min(medians[key] for key in DENSE if key in medians)
        lines.append(
            {
                "op": name,
                "dtype": dtype,
                "shape": shape.name,
                "rows_per_variant": rows,
                "seconds": medians,
                "of_dense": ours / best,
                "peers": {key: value / ours for key, value in medians.items() if key not in ("cad_fast", *DENSE)},
                "gflops": flops(shape, rows) / ours / 1e9,
                **facts,
            }
        )
    return lines


def thread_figures(seconds: float) -> dict[str, float]:
    """Scaling on a large layer, and alternation with torch on a middling one."""
    large, _ = linear.masked_linear(LINEARS[-2], 64, torch.float32)
    calls, _ = linear.masked_linear(LINEARS[4], 16, torch.float32)
    return {
        "threads": torch.get_num_threads(),
        "speedup_of_all_threads": threads.scaling(large["cad_fast"], seconds),
        "speedup_of_all_threads_dense_torch": threads.scaling(large[linear.TORCH], seconds),
        "alternation": threads.alternation(calls["cad_fast"], calls[linear.TORCH], seconds),
    }


def markdown(lines: list[dict[str, Any]]) -> str:
    """A table of one op and dtype."""
    peers = list(lines[0]["peers"])
    head = ["shape", "rows per variant", "ms", "GFLOP/s", "of dense", *(f"× {peer}" for peer in peers)]
    rows = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for line in lines:
        ratios = [f"{line['peers'][peer]:.1f}" if peer in line["peers"] else "" for peer in peers]
        cells = [
            line["shape"],
            str(line["rows_per_variant"]),
            f"{1e3 * line['seconds']['cad_fast']:.3g}",
            f"{line['gflops']:.0f}",
            f"{line['of_dense']:.2f}",
            *ratios,
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return f"### {lines[0]['op']}, {lines[0]['dtype']}\n\n" + "\n".join(rows) + "\n"


def model_markdown(figures: dict[str, dict[str, Any]]) -> str:
    """A table of the whole-model passes."""
    rows = ["| model | contender | seconds | of plain batch | peak MiB |", "|---|---|---|---|---|"]
    for name, figure in figures.items():
        for contender, value in figure["seconds"].items():
            ratio = value / figure["seconds"]["plain batch"]
            peak = figure["peak_mebibytes"][contender]
            rows.append(f"| {name} | {contender} | {value:.3g} | {ratio:.3f} | {peak:.0f} |")
    return "### One pass of 16 variants with random 5% feed-forward masks\n\n" + "\n".join(rows) + "\n"


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    report = backend_report()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {
        "cpu": cpu,
        "capability": report["cpu"]["in_use"],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cad_fast": __version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for table.md, figures.json and plot.png")
    parser.add_argument("--ops", nargs="*", default=list(OPS), choices=list(OPS), help="which ops (default: all)")
    parser.add_argument("--dtypes", nargs="*", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--models", nargs="*", default=list(model.MODELS), choices=list(model.MODELS))
    parser.add_argument(
        "--edits", nargs="*", default=list(model.MODELS), choices=list(model.MODELS), help="mixed edits"
    )
    parser.add_argument("--seconds", type=float, default=0.5, help="measuring time per contender and line")
    parser.add_argument(
        "--solver-ablations", type=int, default=4000, help="largest regression measured; 10000 takes 5 GB, 0 is none"
    )
    parser.add_argument("--rounds", type=int, default=5, help="measured passes per model")
    arguments = parser.parse_args()
    folder = require_writable_folder(arguments.output)
    figures: dict[str, Any] = {"machine": machine(), "ops": [], "models": {}}
    tables = [f"Machine: {', '.join(f'{key} {value}' for key, value in figures['machine'].items())}\n"]

    def save() -> None:
        write_json(folder / "figures.json", figures)
        write_text(folder / "table.md", "\n".join(tables))

    for name in arguments.ops:
        for dtype in arguments.dtypes:
            lines = run_op(name, dtype, arguments.seconds)
            figures["ops"] += lines
            tables.append(markdown(lines))
            print(tables[-1], flush=True)
            save()
    for name in arguments.models:
        figures["models"][name] = model.measure(name, arguments.rounds)
    if figures["models"]:
        tables.append(model_markdown(figures["models"]))
        print(tables[-1], flush=True)
    if arguments.edits:
        figures["edits"] = {name: edits.measure(name, arguments.rounds) for name in arguments.edits}
        tables.append(edits.markdown(figures["edits"]))
        figures["many_edits"] = {name: edits.many(name) for name in arguments.edits}
        tables += [f"- {name}: {figure}\n" for name, figure in figures["many_edits"].items()]
        print(tables[-1], flush=True)
    figures["solvers"] = solvers.measure(arguments.solver_ablations)
    if figures["solvers"]:
        tables.append(solvers.solver_markdown(figures["solvers"]))
        print(tables[-1], flush=True)
    if "masked_linear" in arguments.ops:
        figures["threads"] = thread_figures(4 * arguments.seconds)
        tables.append(
            "### Threads\n\n" + "\n".join(f"- {key}: {value:.2f}" for key, value in figures["threads"].items())
        )
        print(tables[-1], flush=True)
    save()
    if figures["ops"]:
        write_bytes(folder / "plot.png", ratio_plot(figures["ops"]))


if __name__ == "__main__":
    main()
