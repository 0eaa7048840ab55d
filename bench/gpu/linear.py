"""Times of the operators on linear layers, bfloat16, 16 variants, against cuBLAS and what one would write instead."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cad_fast import ops

from .. import roofline
from ..roofline import Layer
from ..shapes import VARIANTS
from . import clock
from .figures import Bar, Contender, at_most, faster_than, floor_us, measure, ours
from .figures_names import DENSE, FLOOR
from .inputs import Edits, Random, edits
from .worker import Worker

# Name, n, k.
LAYERS = (
    ("sd15 ff up 1280", 10240, 1280),
    ("flux ff up", 12288, 3072),
    ("sd15 k/v 320", 320, 768),
    ("sd15 ff down 1280", 1280, 5120),
    ("sdxl ff up 640", 5120, 640),
    ("sdxl k/v 1280", 1280, 2048),
    ("sd15 ff up 320", 2560, 320),
    ("flux single in", 21504, 3072),
)
TINY = (("tiny", 96, 64), ("odd", 33, 70))
MOST_FLOPS = 4e12
"""Of one dense call: larger layers with many rows take the time of several others."""
ROWS = {
    "masked_linear": (256, 16, 1024, 1, 64, 4096),
    "edited_linear": (64, 256, 16, 1024, 4096),
    "gated_linear": (256, 4096),
    "masked_linear_scores": (256, 1024),
}
"""Rows per variant, the most telling first."""


class Inputs(NamedTuple):
    """Of one layer; `words` is empty where nothing is masked."""

    x: Tensor
    weight: Tensor
    words: Tensor


def cases(worker: Worker) -> Iterator[tuple[str, Callable[[], None]]]:
    """One case of each operator and number of rows first, then layer by layer."""
    layers = TINY if worker.dry else LAYERS
    rows_of = {op: (1, 5) for op in ROWS} if worker.dry else ROWS
    for name, n, k in layers:
        most = max(len(rows) for rows in rows_of.values())
        for turn in range(most):
            for op, rows in rows_of.items():
                if turn < len(rows) and 2.0 * VARIANTS * rows[turn] * n * k <= MOST_FLOPS:
                    layer = Layer("", name, rows[turn], n, k)
                    yield f"{op}, {title(layer)}", functools.partial(MEASURED[op], worker, layer)


def title(layer: Layer) -> str:
    return f"{layer.name} {layer.n}x{layer.k}, {layer.rows} rows"


def _sets(worker: Worker, layer: Layer, masked: bool) -> list[Inputs]:
    size = 2 * (VARIANTS * layer.rows * (layer.k + layer.n) + layer.n * layer.k)
    size += VARIANTS * layer.n * layer.k // 8 * masked
    sets = []
    for seed in range(clock.sets_for(worker, size)):
        random = Random(worker.device, worker.dtype(), seed)
        words = random.words(VARIANTS, layer.n, k=layer.k) if masked else torch.empty(0)
        x = random.normal(VARIANTS, layer.rows, layer.k)
        sets.append(Inputs(x, random.normal(layer.n, layer.k, scale=layer.k**-0.5), words))
    return sets


def _dense(sets: list[Inputs]) -> dict[str, Contender]:
    def call(inputs: Inputs) -> Tensor:
        return F.linear(inputs.x.flatten(0, 1), inputs.weight)

    return {DENSE: Contender([functools.partial(call, inputs) for inputs in sets], host=True)}


def bars_of_masked(rows: int) -> list[Bar]:
    """What masked_linear has to reach with so many rows per variant."""
    if rows >= 1024:
        bars = [at_most(1.2, DENSE)]
    elif rows >= 256:
        bars = [at_most(1.4, DENSE)]
    else:
        bars = [at_most({16: 1.5, 1: 2.5}[rows], FLOOR)] if rows in (1, 16) else []
    if rows in (16, 1024):
        least = 3.0 if rows == 16 else 1.0
        bars += [faster_than("bmm on W*M", least), faster_than("vmap", least)]
    return bars


def masked_linear(worker: Worker, layer: Layer) -> None:
    """Random masks of 5% in each variant."""
    sets = _sets(worker, layer, masked=True)
    contenders = _dense(sets)
    contenders |= ours(
        worker, "masked_linear", lambda s, backend: ops.masked_linear(s.x, s.weight, s.words, backend=backend), sets
    )
    if not worker.warming:
        first = sets[0]
        keep = ~ops.unpack_bits(first.words, layer.k)

        def loop() -> list[Tensor]:
            return [F.linear(first.x[v], first.weight * keep[v]) for v in range(VARIANTS)]

        contenders |= {
            "bmm on W*M": Contender([lambda: torch.bmm(first.x, (first.weight * keep).mT)]),
            "vmap": Contender([lambda: torch.func.vmap(lambda m, r: F.linear(r, first.weight * m))(keep, first.x)]),
            "loop over W*M": Contender([loop]),
        }
    floor = floor_us(worker, roofline.masked(layer, "bfloat16"))
    measure(worker, "masked_linear", title(layer), contenders, floor, bars_of_masked(layer.rows), sets=len(sets))


def edited_linear(worker: Worker, layer: Layer) -> None:
    """16 edits of 1% of the weights each, with factor 0."""
    sets = _sets(worker, layer, masked=False)
    entries = edits([layer.rows] * VARIANTS, layer.n * layer.k, worker.device)

    def call(inputs: Inputs, backend: str | None) -> Tensor:
        return ops.edited_linear(inputs.x.flatten(0, 1), inputs.weight, *entries[:4], backend=backend)

    contenders = _dense(sets) | ours(worker, "edited_linear", call, sets)
    contenders["weight swapping"] = Contender([swapping(sets[0], entries)])
    bars = [faster_than("weight swapping", 3.0)]
    if layer.rows >= 64:
        bars.insert(0, at_most(1.2, DENSE))
    floor = floor_us(worker, roofline.edited(layer, "bfloat16"))
    measure(worker, "edited_linear", title(layer), contenders, floor, bars, sets=len(sets))


def swapping(inputs: Inputs, entries: Edits) -> Callable[[], list[Tensor]]:
    """Edit the weight in place for one variant after the other, and undo it."""
    editable = inputs.weight.clone()

    def run() -> list[Tensor]:
        view, outputs = editable.view(-1), []
        for v, indices in enumerate(entries.each):
            originals = view[indices]
            view.index_fill_(0, indices, 0)
            outputs.append(F.linear(inputs.x[v], editable))
            view.index_copy_(0, indices, originals)
        return outputs

    return run


def gated_linear(worker: Worker, layer: Layer) -> None:
    """5% of the neurons removed in each variant."""
    sets = _sets(worker, layer, masked=False)
    gates = (~Random(worker.device, worker.dtype(), 1).mask(VARIANTS, layer.k)).to(worker.dtype())

    def call(inputs: Inputs, backend: str | None) -> Tensor:
        return ops.gated_linear(inputs.x, inputs.weight, gates, backend=backend)

    first = sets[0]
    contenders = _dense(sets) | ours(worker, "gated_linear", call, sets)
    contenders["multiply, linear"] = Contender([lambda: F.linear(first.x * gates[:, None], first.weight)])
    floor = floor_us(worker, roofline.gated(layer, "bfloat16"))
    measure(worker, "gated_linear", title(layer), contenders, floor, [], sets=len(sets))


def masked_linear_scores(worker: Worker, layer: Layer) -> None:
    """The attribution's backward; dense is the weight gradient of all rows at once."""
    sets = _sets(worker, layer, masked=True)
    grad = Random(worker.device, worker.dtype(), 9).normal(VARIANTS, layer.rows, layer.n)
    sums = torch.zeros(2, layer.n, layer.k, device=worker.device)

    def call(inputs: Inputs, backend: str | None) -> None:
        ops.masked_linear_scores(grad, inputs.x, inputs.weight, inputs.words, *sums, backend=backend)

    def dense(inputs: Inputs) -> Any:
        return grad.flatten(0, 1).T @ inputs.x.flatten(0, 1)

    contenders = {DENSE: Contender([functools.partial(dense, inputs) for inputs in sets], host=True)}
    contenders |= ours(worker, "masked_linear_scores", call, sets)
    first = sets[0]
    contenders["bmm, weight gradients"] = Contender([lambda: torch.bmm(grad.mT, first.x)])
    floor = floor_us(worker, roofline.scores(layer, "bfloat16"))
    measure(worker, "masked_linear_scores", title(layer), contenders, floor, [], sets=len(sets))


MEASURED = {
    "masked_linear": masked_linear,
    "edited_linear": edited_linear,
    "gated_linear": gated_linear,
    "masked_linear_scores": masked_linear_scores,
}
