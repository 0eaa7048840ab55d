"""``python -m bench.gpu --output DIR``: on a GPU, the tests that need one, then every operator against its peers.

Writes ``gpu.json`` and ``gpu.md`` with the device's name: medians of interleaved runs by the device's own clock, as
ratios to the dense call, to the peers and to the floor that ``bench.roofline`` counts. Where a test fails, no figure is
given. What the time did not suffice for is listed.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cad_fast import backend_report, ops
from cad_fast.files import require_writable_folder, write_json, write_text
from cad_fast.row_engine.gates import keep_columns, keep_filters, scale_columns, scale_filters

from . import roofline
from .linear import require_right
from .roofline import DEVICES, Layer
from .shapes import EDIT_FRACTION, MASK_FRACTION, VARIANTS
from .timing import Contenders

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
BACKENDS = ("cuda", "triton", "native")
DENSE = "dense"
MOST_BYTES = 16e9  # of the largest peer's copies of the weight


def masked_linear(layer: Layer, dtype: torch.dtype, device: torch.device) -> Contenders:
    """Random masks of 5% in each of 16 variants."""
    x, weight = _inputs(layer, dtype, device)
    mask = torch.rand(VARIANTS, layer.n, layer.k, generator=_generator(device, 1), device=device) < MASK_FRACTION
    words = ops.pack_bits(mask)
    calls = _ours("masked_linear", x, weight, words, None, None, False)
    calls |= {
        DENSE: lambda: F.linear(x.flatten(0, 1), weight),
        "loop over W*M": lambda: torch.stack([F.linear(x[v], weight * ~mask[v]) for v in range(VARIANTS)]),
        "bmm on W*M": lambda: torch.bmm(x, (weight * ~mask).mT),
        "vmap": lambda: torch.func.vmap(lambda drop, rows: F.linear(rows, weight * ~drop))(mask, x),
    }
    return calls


def edited_linear(layer: Layer, dtype: torch.dtype, device: torch.device) -> Contenders:
    """16 different edits, each of 1% of the weights, with factor 0."""
    x, weight = _inputs(layer, dtype, device)
    count = max(1, int(EDIT_FRACTION * weight.numel()))
    each = [
        torch.randperm(weight.numel(), generator=_generator(device, v), device=device)[:count].sort().values
        for v in range(VARIANTS)
    ]
    indices = torch.cat(each)
    offsets, ends = torch.arange(VARIANTS + 1) * count, torch.arange(VARIANTS + 1) * layer.rows
    factors = torch.zeros(len(indices), device=device)
    flat, editable = x.flatten(0, 1), weight.clone()

    def swap() -> Tensor:
        outputs, view = [], editable.view(-1)
        for v in range(VARIANTS):
            originals = view[each[v]]
            view[each[v]] = 0
            outputs.append(F.linear(x[v], editable))
            view[each[v]] = originals
        return torch.cat(outputs)

    calls = _ours("edited_linear", flat, weight, ends, offsets, indices, factors, None, False)
    calls |= {DENSE: lambda: F.linear(flat, weight), "weight swapping": swap}
    return calls


def masked_linear_scores(layer: Layer, dtype: torch.dtype, device: torch.device) -> Contenders:
    """The attribution's backward; dense is the plain weight gradient of all rows at once."""
    x, weight = _inputs(layer, dtype, device)
    grad = torch.randn(VARIANTS, layer.rows, layer.n, generator=_generator(device, 2), device=device).to(dtype)
    mask = torch.rand(VARIANTS, layer.n, layer.k, generator=_generator(device, 1), device=device) < MASK_FRACTION
    words = ops.pack_bits(mask)

    def fused(backend: str) -> Any:
        def call() -> Tensor:
            kept, ablated = torch.zeros(2, layer.n, layer.k, device=device)
            ops.masked_linear_scores(grad, x, weight, words, kept, ablated, backend=backend)
            return torch.stack([kept, ablated])

        return call

    def loop() -> Tensor:
        kept, ablated = torch.zeros(2, layer.n, layer.k, device=device)
        for v in range(VARIANTS):
            scores = weight * (grad[v].T @ x[v])
            kept += torch.where(mask[v], 0, scores)
            ablated += torch.where(mask[v], scores, 0)
        return torch.stack([kept, ablated])

    backends = _backends("masked_linear_scores", grad, x, weight, words)
    calls = {f"cad_fast {backend}": fused(backend) for backend in backends}
    calls |= {DENSE: lambda: grad.flatten(0, 1).T @ x.flatten(0, 1), "loop over variants": loop}
    return calls


def masked_conv2d(layer: Layer, dtype: torch.dtype, device: torch.device) -> Contenders:
    """Random masks of 5% in each of 16 variants of a 3 x 3 convolution, both branches of one picture."""
    x, weight = _images(layer, dtype, device)
    mask = torch.rand(VARIANTS, *weight.shape, generator=_generator(device, 2), device=device) < MASK_FRACTION
    words = ops.pack_bits(mask.flatten(2))

    def grouped() -> Tensor:
        stacked = (weight * ~mask).flatten(0, 1)
        y = F.conv2d(x.transpose(0, 1).flatten(1, 2), stacked, padding=1, groups=VARIANTS)
        return y.unflatten(1, (VARIANTS, -1)).transpose(0, 1)

    def ours(backend: str) -> Any:
        return lambda: ops.masked_conv2d(x, weight, words, padding=1, backend=backend)

    backends = _backends("masked_conv2d", x, weight, words)
    calls: dict[str, Any] = {f"cad_fast {backend}": ours(backend) for backend in backends}
    calls |= {
        DENSE: lambda: F.conv2d(x.flatten(0, 1), weight, padding=1),
        "loop over W*M": lambda: torch.stack([F.conv2d(x[v], weight * ~mask[v], padding=1) for v in range(VARIANTS)]),
        "one grouped conv": grouped,
    }
    return calls


def gated_linear(layer: Layer, dtype: torch.dtype, device: torch.device) -> Contenders:
    """5% of the neurons removed in each of 16 variants."""
    x, weight = _inputs(layer, dtype, device)
    keep = torch.rand(VARIANTS, layer.k, generator=_generator(device, 1), device=device) >= MASK_FRACTION
    gates, flat = keep.to(dtype), x.flatten(0, 1)
    calls = _ours("gated_linear", x, weight, gates, None, False)
    calls |= {
        DENSE: lambda: F.linear(flat, weight),
        "torch.where, linear": lambda: F.linear(keep_columns(flat, keep), weight),
        "multiply, linear": lambda: F.linear(scale_columns(flat, gates, 1), weight),
    }
    return calls


def gated_conv2d(layer: Layer, dtype: torch.dtype, device: torch.device) -> Contenders:
    """5% of the filters removed in each of 16 variants of a 3 x 3 convolution, both branches of one picture."""
    x, weight = _images(layer, dtype, device)
    keep = torch.rand(VARIANTS, len(weight), generator=_generator(device, 2), device=device) >= MASK_FRACTION
    gates, flat = keep.to(dtype), x.flatten(0, 1)
    bias = torch.zeros(len(weight), dtype=dtype, device=device)

    def plain() -> Tensor:
        return F.conv2d(flat, weight, bias, padding=1)

    calls = _ours("gated_conv2d", x, weight, gates, bias, 1, 1)
    calls |= {
        DENSE: plain,
        "conv, torch.where": lambda: keep_filters(plain(), keep, bias),
        "conv, multiply, add": lambda: scale_filters(plain(), gates, bias),
    }
    return calls


OPS = {
    "masked_linear": (masked_linear, roofline.masked, "loop over W*M"),
    "masked_conv2d": (masked_conv2d, roofline.masked, "loop over W*M"),
    "edited_linear": (edited_linear, roofline.edited, "weight swapping"),
    "gated_linear": (gated_linear, roofline.gated, "torch.where, linear"),
    "gated_conv2d": (gated_conv2d, roofline.gated_filters, "conv, torch.where"),
    "masked_linear_scores": (masked_linear_scores, roofline.scores, "loop over variants"),
}
"""Each operator: its contenders, its counted floor, and the contender whose result is right."""


def layers_of(op: str) -> list[Layer]:
    """The layers that an operator is measured on."""
    return [layer for layer in roofline.LAYERS if (layer.reuse > 1) == op.endswith("conv2d")]


def _generator(device: torch.device, seed: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def _inputs(layer: Layer, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = _generator(device, 0)
    x = torch.randn(VARIANTS, layer.rows, layer.k, generator=generator, device=device)
    weight = torch.randn(layer.n, layer.k, generator=generator, device=device) / layer.k**0.5
    return x.to(dtype), weight.to(dtype)


def _images(layer: Layer, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    channels, size = layer.n, round((layer.rows / 2) ** 0.5)
    x = torch.randn(VARIANTS, 2, channels, size, size, generator=_generator(device, 0), device=device)
    weight = torch.randn(channels, channels, 3, 3, generator=_generator(device, 1), device=device) / layer.k**0.5
    return x.to(dtype), weight.to(dtype)


def _backends(op: str, *arguments: Any) -> list[str]:
    """The backends that can run an operator on arguments, the reference excepted."""
    known = [backend for backend in BACKENDS if backend in ops.dispatch.BACKENDS]
    return [backend for backend in known if ops.dispatch.can_run(op, backend, *arguments)]


def _ours(op: str, *arguments: Any) -> dict[str, Any]:
    def call(backend: str) -> Any:
        return lambda: getattr(ops, op)(*arguments, backend=backend)

    return {f"cad_fast {backend}": call(backend) for backend in _backends(op, *arguments)}


def medians(contenders: Contenders, device: torch.device, seconds: float, minimum: int = 5) -> dict[str, float]:
    """Median seconds per call, in turns; on a GPU by its own events, so that launches overlap as they do in use."""
    for call in contenders.values():
        call()
        call()
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(next(iter(samples.values()))) < minimum:
        for name, call in contenders.items():
            samples[name].append(_timed(call, device))
    return {name: statistics.median(values) for name, values in samples.items()}


def _timed(call: Any, device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    call()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3


def measure(op: str, layer: Layer, dtype: str, device: torch.device, seconds: float) -> dict[str, Any]:
    """One line: seconds of every contender, and the ratios. A backend whose result is wrong raises AssertionError."""
    prepare, floor, right = OPS[op]
    with torch.no_grad():
        calls = prepare(layer, DTYPES[dtype], device)
        expected = calls[right]().flatten()
        for name, call in calls.items():
            if name.startswith("cad_fast"):
                require_right(call().flatten(), expected, DTYPES[dtype])
        del expected
        seconds_of = medians(calls, device, seconds)
    known = next((d for d in DEVICES if device.type == "cuda" and _same_device(d.name)), None)
    return {
        "op": op,
        "dtype": dtype,
        "model": layer.model,
        "layer": layer.name,
        "rows_per_variant": layer.rows,
        "seconds": seconds_of,
        "of_dense": {k: v / seconds_of[DENSE] for k, v in seconds_of.items() if k != DENSE},
        "floor_seconds": None if known is None else roofline.total(floor(layer, dtype), known, dtype),
    }


def _same_device(name: str) -> bool:
    return name.split()[0] in torch.cuda.get_device_name()


def table(lines: list[dict[str, Any]]) -> str:
    """All lines of one operator and dtype, Markdown."""
    contenders = list(dict.fromkeys(name for line in lines for name in line["seconds"] if name != DENSE))
    head = ["model", "layer", "rows", "dense, us", *(f"{name} / dense" for name in contenders), "best of ours / floor"]
    rows = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for line in lines:
        ours = [value for name, value in line["seconds"].items() if name.startswith("cad_fast")]
        floor = line["floor_seconds"]
        cells = [line["model"], line["layer"], str(line["rows_per_variant"]), f"{1e6 * line['seconds'][DENSE]:.1f}"]
        cells += [f"{line['of_dense'][name]:.2f}" if name in line["of_dense"] else "" for name in contenders]
        cells.append("" if floor is None or not ours else f"{min(ours) / floor:.2f}")
        rows.append(f"| {' | '.join(cells)} |")
    return f"### {lines[0]['op']}, {lines[0]['dtype']}\n\n" + "\n".join(rows) + "\n"


def run_tests(limit: float) -> dict[str, Any]:
    """The tests marked gpu, in a process of their own: {"passed": bool, "summary": ..., "seconds": ...}."""
    started = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
        output, passed = done.stdout, done.returncode == 0
    except subprocess.TimeoutExpired as error:
        output, passed = f"stopped after {error.timeout:.0f} s", False
    lines = output.strip().splitlines() or ["no output"]
    failures = [line for line in lines if re.match(r"(FAILED|ERROR) ", line)]
    return {
        "passed": passed,
        "summary": lines[-1],
        "failures": failures,
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for gpu.json and gpu.md")
    parser.add_argument("--limit", type=float, default=500, help="seconds for everything")
    parser.add_argument("--seconds", type=float, default=1.0, help="measuring time per line")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("there is no CUDA device: nothing to check", file=sys.stderr)
        return 2
    end = time.monotonic() + arguments.limit
    folder = require_writable_folder(arguments.output)
    device = torch.device("cuda", torch.cuda.current_device())
    name = torch.cuda.get_device_name(device)
    figures: dict[str, Any] = {"device": name, "report": backend_report(), "lines": [], "not_reached": []}
    figures["tests"] = run_tests(0.6 * arguments.limit)
    parts = [f"Device: {name}, torch {torch.__version__}", "", f"Tests: {figures['tests']['summary']}", ""]
    parts += figures["tests"]["failures"]

    def save() -> None:
        write_json(folder / "gpu.json", figures)
        write_text(folder / "gpu.md", "\n".join(parts))

    save()
    if not figures["tests"]["passed"]:
        print("\n".join(parts), "\nno figure is given while a test fails", sep="\n", file=sys.stderr)
        return 1
    for op in OPS:
        for dtype in DTYPES:
            lines = []
            for layer in layers_of(op):
                if VARIANTS * layer.n * layer.k * 9 > MOST_BYTES or time.monotonic() > end:
                    figures["not_reached"].append([op, dtype, layer.model, layer.name])
                    continue
                lines.append(measure(op, layer, dtype, device, arguments.seconds))
            figures["lines"] += lines
            if lines:
                parts.append(table(lines))
                print(parts[-1], flush=True)
            save()
    return 0


if __name__ == "__main__":
    sys.exit(main())
