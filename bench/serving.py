"""Serving 16 different edits at once: pictures per second at saturation, and waiting times under load.

The contenders share the batcher's code, the denoiser and the queue. They differ in how rows come under their edits:

- no edits: the same requests without any.
- mixed edits: one pass for all, every picture under its own edit.
- one edit per pass: pictures with the same edit share a pass, on the same kernels as mixed edits.
- swapping weights: the same, but the edit is put into the weights before the pass and taken out after it.

Run ``python -m bench.serving --output bench-output/serving`` on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import io
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

import cad_fast
from cad_fast import ComponentSpace, Edit
from cad_fast.diffusion.denoisers import output_tensor
from cad_fast.diffusion.trees import find_row_paths, map_arguments
from cad_fast.files import require_writable_folder, write_bytes, write_json
from cad_fast.serving.engine.batcher import Batcher, Silent
from cad_fast.serving.engine.edited_passes import RowWise, SwappedWeights
from cad_fast.serving.engine.jobs import PictureJob, RequestedEdit, Ticket

from .__main__ import machine

EDITS = 16
EDIT_FRACTION = 0.03  # of the cross-attention keys and values, as in the demo
LOADS = (0.25, 0.5, 0.75, 0.9)
PROMPTS = [cad_fast.zoo.caption(name, style) for name in cad_fast.zoo.OBJECTS for style in cad_fast.zoo.STYLES]


class OneEditPerPass(RowWise):
    """A pass for every edit among the rows, by the same kernels."""

    def run(self, inputs: dict[str, Any], per_row: Sequence[Any]) -> Any:
        """Run as ``EditedPasses.run``."""
        groups: dict[Any, list[int]] = {}
        for row, uses in enumerate(per_row):
            groups.setdefault(tuple(use.key for use in uses), []).append(row)
        paths, parts, order = find_row_paths(inputs, len(per_row)), [], []
        for rows in groups.values():
            picked = map_arguments(inputs, lambda path, leaf, rows=rows: leaf[rows] if path in paths else leaf)
            parts.append(output_tensor(super().run(picked, [per_row[row] for row in rows])))
            order += rows
        return (torch.cat(parts)[torch.tensor(order).argsort()],)


class Passes(Silent):
    """The pictures of each pass of the denoiser, and the seconds of all passes together."""

    def __init__(self) -> None:
        self.pictures, self.seconds = [], 0.0

    def on_pass(self, part: str, pictures: int, rows: int, edits: int, seconds: float) -> None:
        """Count a pass."""
        if part == "denoiser":
            self.pictures.append(pictures)
            self.seconds += seconds


@dataclass
class Contender:
    """A way to serve, and whether its requests have edits."""

    name: str
    passes: type
    edited: bool


CONTENDERS = (
    Contender("no edits", RowWise, False),
    Contender("mixed edits", RowWise, True),
    Contender("one edit per pass", OneEditPerPass, True),
    Contender("swapping weights", SwappedWeights, True),
)


class Bench:
    """The embedded model, 16 random edits of the demo's size, and requests for them."""

    def __init__(self, steps: int) -> None:
        self.pipeline = cad_fast.zoo.load()
        self.steps = steps
        space = ComponentSpace.of(self.pipeline, "weight", "cross-attention-kv")
        self.edits = []
        for seed in range(EDITS):
            order = torch.randperm(space.n, generator=torch.Generator().manual_seed(seed))
            chosen = order[: int(EDIT_FRACTION * space.n)].sort().values
            self.edits.append(Edit.from_indices(f"edit{seed}", space, chosen))

    def job(self, number: int, edited: bool) -> PictureJob:
        """Make the number-th request, with prompts and edits in turn."""
        edits = (RequestedEdit(self.edits[number % EDITS]),) if edited else ()
        arguments = {"num_inference_steps": self.steps, "guidance_scale": 3.0}
        return PictureJob(f"job{number}", PROMPTS[number % len(PROMPTS)], seed=number, arguments=arguments, edits=edits)

    @contextmanager
    def batcher(self, contender: Contender, batch: int) -> Iterator[tuple[Batcher, Passes]]:
        """Run a warm batcher of ``batch`` pictures."""
        passes = Passes()
        settings = {"max_batch_size": batch, "max_queue": 100_000, "observer": passes}
        batcher = Batcher(self.pipeline, contender.passes(self.pipeline), **settings).start()
        try:
            for ticket in [batcher.submit(self.job(number, contender.edited)) for number in range(batch)]:
                ticket.future.result()
            passes.pictures, passes.seconds = [], 0.0
            yield batcher, passes
        finally:
            batcher.close()

    def saturation(self, contender: Contender, batch: int, pictures: int) -> dict[str, float]:
        """Draw ``pictures`` pictures at once, a multiple of ``batch``, so that every pass is full."""
        with self.batcher(contender, batch) as (batcher, passes):
            begun, processor = time.perf_counter(), time.process_time()
            for ticket in [batcher.submit(self.job(number, contender.edited)) for number in range(pictures)]:
                ticket.future.result()
            seconds = time.perf_counter() - begun
            return {
                "pictures_per_second": pictures / seconds,
                "pictures_per_pass": statistics.mean(passes.pictures),
                "share_in_denoiser": passes.seconds / seconds,
                "processor_seconds_per_picture": (time.process_time() - processor) / pictures,
            }

    def latencies(self, contender: Contender, batch: int, rate: float, seconds: float) -> dict[str, float]:
        """Measure the seconds from request to picture at random times of arrival, ``rate`` per second on average."""
        with self.batcher(contender, batch) as (batcher, _):
            draw, taken = random.Random(0), []
            tickets: list[Ticket] = []
            begun = at = time.perf_counter()
            while at < begun + seconds:
                time.sleep(max(0.0, at - time.perf_counter()))
                ticket = batcher.submit(self.job(len(tickets), contender.edited))
                # Count from when the request was due, so that a late submitter does not hide waiting.
                ticket.future.add_done_callback(lambda _, due=at: taken.append(time.perf_counter() - due))
                tickets.append(ticket)
                at += draw.expovariate(rate)
            for ticket in tickets:
                ticket.future.result()
        p50, p99 = np.percentile(taken, [50, 99])
        return {"rate": rate, "requests": len(taken), "p50": float(p50), "p99": float(p99)}


@torch.no_grad()
def require_right(bench: Bench) -> None:
    """Check that all contenders draw the same pictures: a wrong one gets no figures."""
    drawn = {}
    for contender in CONTENDERS[1:]:
        with bench.batcher(contender, EDITS) as (batcher, _):
            tickets = [batcher.submit(bench.job(number, True)) for number in range(EDITS)]
            drawn[contender.name] = np.stack([np.asarray(t.future.result()[0]).astype(int) for t in tickets])
    first = drawn.pop("mixed edits")
    for name, others in drawn.items():
        if np.abs(first - others).max() > 4:
            raise AssertionError(f"the pictures of mixed edits and {name} differ: no figures are given")


def measure(steps: int, batch: int, pictures: int, seconds: float, rounds: int) -> dict[str, Any]:
    """Measure saturation in turns, as the median of the rounds, then waiting times at shares of it without edits."""
    bench = Bench(steps)
    require_right(bench)
    cases = [(contender, batch) for contender in CONTENDERS]
    # Contenders that group by edits may look for equal edits among four times as many pictures.
    cases += [(contender, 4 * batch) for contender in CONTENDERS[2:]]
    samples: dict[tuple[str, int], list[dict[str, float]]] = {}
    for _ in tqdm(range(rounds), desc="saturation"):
        for contender, size in cases:
            taken = bench.saturation(contender, size, pictures)
            samples.setdefault((contender.name, size), []).append(taken)
    lines = []
    for (name, size), taken in samples.items():
        medians = {key: statistics.median(each[key] for each in taken) for key in taken[0]}
        lines.append({"contender": name, "pictures_in_batch": size, **medians})
    rates = {(line["contender"], line["pictures_in_batch"]): line["pictures_per_second"] for line in lines}
    best, mixed = rates["no edits", batch], rates["mixed edits", batch]
    waits = [
        {"contender": contender.name, "load": load, **bench.latencies(contender, batch, load * best, seconds)}
        for load in tqdm(LOADS, desc="latency")
        for contender in CONTENDERS
    ]
    return {
        "steps": steps,
        "edits": EDITS,
        "edit_fraction": EDIT_FRACTION,
        "saturation": lines,
        "mixed_over": {f"{name}, {size} in the batch": mixed / rate for (name, size), rate in rates.items()},
        "latency": waits,
    }


def plot(figures: dict[str, Any]) -> bytes:
    """Plot pictures per second of each contender, and median and 99th percentile of the waiting time, as a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    lines = figures["saturation"][::-1]
    names = [f"{line['contender']}\n({line['pictures_in_batch']} in the batch)" for line in lines]
    left.barh(names, [line["pictures_per_second"] for line in lines], color="C0")
    left.set(xlabel=f"pictures per second, {figures['steps']} steps", title=f"saturation, {figures['edits']} edits")
    for number, contender in enumerate(dict.fromkeys(entry["contender"] for entry in figures["latency"])):
        entries = [entry for entry in figures["latency"] if entry["contender"] == contender]
        for key, style in (("p50", "-"), ("p99", "--")):
            rates = [entry["rate"] for entry in entries]
            values = [1000 * entry[key] for entry in entries]
            right.plot(rates, values, style, color=f"C{number}", marker="o", label=f"{contender}, {key}")
    right.set(xlabel="requests per second", ylabel="milliseconds", yscale="log", title="from request to picture")
    right.legend(fontsize=8, loc="upper left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def main() -> None:
    """Measure and write ``serving.json`` and ``serving.png``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="bench-output/serving")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=16, help="pictures in the batch")
    parser.add_argument("--pictures", type=int, default=64, help="per contender and round")
    parser.add_argument("--seconds", type=float, default=8.0, help="per contender and load")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    folder = require_writable_folder(arguments.output)
    figures = {
        "machine": machine(),
        **measure(arguments.steps, arguments.batch, arguments.pictures, arguments.seconds, arguments.rounds),
    }
    write_json(folder / "serving.json", figures)
    write_bytes(folder / "serving.png", plot(figures))
    for line in figures["saturation"]:
        print(line)
    for name, ratio in figures["mixed_over"].items():
        print(f"mixed edits are {ratio:.2f} times as fast as {name}")


if __name__ == "__main__":
    main()
