"""Whole denoisers: 16 masked variants and 16 mixed edits in one pass of a UNet of Stable Diffusion 1.5's size."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import cad_fast
from cad_fast import Ablation, ComponentSpace, EditManager

from ..edits import random_edits
from ..shapes import MASK_FRACTION, VARIANTS
from . import clock, unet
from .figures import Bar
from .worker import Worker

PLAIN, MASKED, EDITED = "plain batch", "16 masked variants", "16 mixed edits"
ONE_BY_ONE = "one after the other"
ROUNDS = 8
MOST_OFF = 1e-2
"""How far a row may be from the same row made with changed weights, by the norm of what the change does to it, in
float32: in bfloat16 rounding alone moves a picture of a random network by as much as a small edit does."""
LOOKED_AT = 3


def cases(worker: Worker) -> Iterator[tuple[str, Callable[[], None]]]:
    study = Study(worker)
    yield PLAIN, study.plain
    yield f"{MASKED} of feed-forward weights", study.masked
    yield EDITED, study.edited


class Study:
    """The UNet and its plain time, which the others are compared with."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.model = unet.build(worker)
        self.us: dict[str, float] = {}
        torch.backends.cudnn.allow_tf32 = False  # where float32 is compared
        if worker.skip > 0 and not worker.warming:  # the case that measured it is behind us
            self.us = self.timed(PLAIN)[0]

    @torch.no_grad()
    def timed(self, name: str) -> tuple[dict[str, float], dict[str, str]]:
        """Microseconds of a pass, launched one by one and replayed as a graph; and what was noted of the graph."""
        if self.worker.warming:
            self.model.output()
            return {}, {}
        us, notes = {name: clock.wall_time(self.worker, self.model.output, ROUNDS)}, {}
        if self.worker.dry:
            return us, {"graph": "a CPU has no graphs"}
        outputs: list[Tensor] = []
        expected = self.model.output()

        def run() -> None:
            outputs[:] = [self.model.output()]

        graph, why = clock.capture(run)
        if graph is None:
            return us, {"graph": why}
        graph.replay()
        torch.cuda.synchronize()
        off = unet.distance(outputs[0], expected)
        notes["graph"] = f"the replayed pictures are off by {off:.1e}" + ", not the same" * (not off <= 1e-2)
        us[f"{name}, graph"] = clock.wall_time(self.worker, graph.replay, ROUNDS)
        return us, notes

    def plain(self) -> None:
        if self.worker.warming:
            return
        self.us, notes = self.timed(PLAIN)
        self.worker.put(case=PLAIN, us=self.us, notes=notes, bars=[])

    @torch.no_grad()
    def masked(self) -> None:
        """The masks are drawn from seeds."""
        model = self.model
        space = ComponentSpace.of(model.unet, "weight", "feed-forward")
        ablations = [Ablation.seeded(space.n, MASK_FRACTION, seed=1, variant=v) for v in range(VARIANTS)]
        with cad_fast.rows(model.unet, ablations, space):
            us, notes = self.timed(MASKED)
        parts = space.split(ablations[LOOKED_AT].mask)
        removed = {
            name: parts[name].view_as(module.weight).to(self.worker.device)
            for name, module in space.modules(model.unet).items()
        }
        if not self.worker.warming:
            swapping = clock.wall_time(self.worker, lambda: self._one_by_one(space, removed), 2)
            self._put(MASKED, us, notes, swapping, 1.25, masked_weights=space.n)
        with self.in_float32() as (wide, pair):
            with cad_fast.rows(wide, [ablations[LOOKED_AT], None], space):
                rows = wide(**pair).sample
            for name, module in space.modules(wide).items():
                module.weight.masked_fill_(removed[name], 0)
            self._judge(MASKED, rows, wide(**pair).sample)

    def _one_by_one(self, space: ComponentSpace, removed: dict[str, Tensor]) -> None:
        """Row by row: change the weights, run the row, put the weights back.

        Every time with the same masks, which are on the device already: changing weights at its best.
        """
        modules = space.modules(self.model.unet)
        for row in range(VARIANTS):
            saved = {name: module.weight.detach().clone() for name, module in modules.items()}
            for name, module in modules.items():
                module.weight.masked_fill_(removed[name], 0)
            self.model.unet(**self.model.row(row))
            for name, module in modules.items():
                module.weight.copy_(saved[name])

    @torch.no_grad()
    def edited(self) -> None:
        """Edits of keys and values, a different one in each row."""
        model = self.model
        edits = random_edits(model.unet, VARIANTS, model.edited_weights)
        manager = EditManager(model.unet)
        try:
            names = [manager.load_edit(edit) for edit in edits]
            with manager.per_prompt(names):
                us, notes = self.timed(EDITED)
        finally:
            manager.close()

        def one_by_one() -> None:
            for row, edit in enumerate(edits):
                with edit.applied(model.unet):
                    model.unet(**model.row(row))

        if not self.worker.warming:
            swapping = clock.wall_time(self.worker, one_by_one, 2)
            self._put(EDITED, us, notes, swapping, 1.05, weights_of_an_edit=edits[0].n_weights)
        with self.in_float32() as (wide, pair):
            manager = EditManager(wide)
            with manager.per_prompt([manager.load_edit(edits[LOOKED_AT]), "__base__"]):
                rows = wide(**pair).sample
            manager.close()
            with edits[LOOKED_AT].applied(wide):
                self._judge(EDITED, rows, wide(**pair).sample)

    @contextlib.contextmanager
    def in_float32(self) -> Iterator[tuple[nn.Module, dict[str, Tensor]]]:
        """A copy of the UNet, and one row twice, in float32."""
        row = self.model.row(LOOKED_AT)
        pair = {name: value.repeat(2, *[1] * (value.dim() - 1)) for name, value in row.items()}
        pair = {name: value.float() if value.is_floating_point() else value for name, value in pair.items()}
        yield copy.deepcopy(self.model.unet).float(), pair

    def _put(
        self, name: str, us: dict[str, float], notes: dict[str, str], swapping: float, limit: float, **facts: Any
    ) -> None:
        us = self.us | us | {ONE_BY_ONE: swapping}
        bars = [
            Bar(f"<= {limit} x plain", name, PLAIN, limit),
            Bar(f"<= {limit} x plain, graphs", f"{name}, graph", f"{PLAIN}, graph", limit),
            Bar(">= 3 x faster than one after the other", ONE_BY_ONE, name, 3.0, least=True),
        ]
        judged = [{"bar": bar.text, "value": bar.value(us), "met": bar.met(us)} for bar in bars]
        self.worker.put(case=name, us=us, notes=notes, bars=judged, **facts)

    def _judge(self, name: str, rows: Tensor, changed: Tensor) -> None:
        """`rows`: the picture under a change, and without; `changed`: with changed weights."""
        effect, off = unet.distance(rows[1], changed[0]), unet.distance(rows[0], changed[0])
        share = off / max(effect, 1e-9)
        said = f"the change moves the picture by {100 * effect:.2g}%, and a row under it is off by {share:.1e} of that"
        right = effect > 0 and off <= MOST_OFF * effect
        notes, facts = ({"right": said}, {}) if right else ({"WRONG": said}, {"error": f"WRONG: {said}"})
        self.worker.put(case=f"{name}, in float32", us={}, notes=notes, bars=[], **facts)
